"""Packing, reading and unpacking single safetensors files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vlpress.model.packed.container import BLOCK
from vlpress.model.packed.entropy_coder import decode, encode
from vlpress.model.packed.reading import PackedFile, stored_index, tensor_sizes
from vlpress.model.packed.writing import pack_file, unpack_file

DTYPES = (
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.bool,
)


def random_tensors(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"of.{dtype}": (5 * torch.randn(70, 40, generator=generator)).to(dtype) for dtype in DTYPES
    }
    tensors |= {
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 3),
        "zeros": torch.zeros(300, 20, dtype=torch.bfloat16),
        "ü": torch.ones(3),
    }
    return tensors


def quiet(count: int) -> None:
    pass


def packed(folder: Path, tensors: dict[str, Tensor], *, block: int = BLOCK) -> tuple[Path, Path]:
    source, target = folder / "x.safetensors", folder / "x.vlz"
    save_file(tensors, source, metadata={"format": "pt", "note": "kept"})
    pack_file(source, target, threads=1, on_bytes=quiet, block=block)
    return source, target


BLOCKS = pytest.mark.parametrize("block", [BLOCK, 512], ids=["one block", "many blocks"])


@BLOCKS
def test_an_unpacked_file_has_the_same_bytes(tmp_path: Path, block: int) -> None:
    source, container = packed(tmp_path, random_tensors(), block=block)
    done: list[int] = []
    unpack_file(container, tmp_path / "y", threads=3, on_bytes=done.append)
    assert (tmp_path / "y").read_bytes() == source.read_bytes()
    assert sum(done) == source.stat().st_size
    assert max(done) <= block


def test_header_order_and_padding_are_kept(tmp_path: Path) -> None:
    """Entries in another order than the tensors, odd spacing, and padding."""
    entries = {
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [0, 4]},
    }
    text = json.dumps(entries, indent=1).encode() + b" " * 37
    source = tmp_path / "x.safetensors"
    source.write_bytes(len(text).to_bytes(8, "little") + text + bytes(range(12)))
    pack_file(source, tmp_path / "x.vlz", threads=1, on_bytes=quiet)
    unpack_file(tmp_path / "x.vlz", tmp_path / "y", threads=1, on_bytes=quiet)
    assert (tmp_path / "y").read_bytes() == source.read_bytes()


@BLOCKS
def test_packed_tensors_are_those_of_safetensors(tmp_path: Path, block: int) -> None:
    source, container = packed(tmp_path, random_tensors(), block=block)
    file = PackedFile(container)
    with safe_open(source, "pt") as reference:
        assert file.keys() == list(reference.keys())
        for name in file.keys():
            expected, tensor = reference.get_tensor(name), file.get_tensor(name)
            assert tensor.dtype == expected.dtype and tensor.shape == expected.shape
            bits = [t.reshape(-1).view(torch.uint8) for t in (tensor, expected)]
            assert torch.equal(*bits)
            header = reference.get_slice(name)
            assert file.get_slice(name).get_shape() == header.get_shape()
            assert file.get_slice(name).get_dtype() == header.get_dtype()


@BLOCKS
@pytest.mark.parametrize("rows", [slice(0, 1), slice(13, 41), slice(69, 70), slice(5, 5)])
def test_rows_are_read_alone(tmp_path: Path, block: int, rows: slice) -> None:
    tensors = random_tensors()
    _, container = packed(tmp_path, tensors, block=block)
    for name in ("of.torch.bfloat16", "of.torch.int32", "of.torch.float64"):
        assert torch.equal(PackedFile(container).get_slice(name)[rows], tensors[name][rows])


def test_rows_decode_only_the_blocks_that_hold_them(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(64, 32).to(torch.bfloat16)}  # 8 rows a block
    _, container = packed(tmp_path, tensors, block=512)
    block = PackedFile(container).segment("w").blocks[0]
    data = bytearray(container.read_bytes())
    data[block.offset] ^= 255
    container.write_bytes(data)
    rows = PackedFile(container).get_slice("w")
    assert torch.equal(rows[8:64], tensors["w"][8:64])
    with pytest.raises(ValueError, match="block 0"):
        rows[7:9]


def test_bytes_do_not_depend_on_threads(tmp_path: Path) -> None:
    source, one = packed(tmp_path, random_tensors(), block=512)
    pack_file(source, tmp_path / "y.vlz", threads=4, on_bytes=quiet, block=512)
    assert (tmp_path / "y.vlz").read_bytes() == one.read_bytes()


def test_the_index_has_size_and_digest_of_the_file(tmp_path: Path) -> None:
    import hashlib

    source, container = packed(tmp_path, random_tensors())
    index = stored_index(container)
    assert index.size == source.stat().st_size
    assert index.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    sizes = {info.name: coded for info, coded in tensor_sizes(container)}
    assert sizes.keys() == random_tensors().keys()
    assert sizes["of.torch.bfloat16"] < 0.75 * 70 * 40 * 2
    assert sizes["zeros"] < 200


@pytest.mark.parametrize("data", [b"", b"x" * 7, b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"[]"])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ValueError, match=f"{len(data)} bytes"):
        pack_file(tmp_path / "x", tmp_path / "y", threads=1, on_bytes=quiet)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "x.safetensors"
    save_file(random_tensors(), source)
    source.write_bytes(source.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a safetensors file"):
        pack_file(source, tmp_path / "y", threads=1, on_bytes=quiet)


def test_streams_that_do_not_get_shorter_are_stored() -> None:
    noise = torch.randint(256, (4096,), generator=torch.Generator().manual_seed(0))
    stream = noise.to(torch.uint8).numpy().tobytes()
    assert encode(stream) is stream
    assert decode(stream, len(stream)) == stream


def test_a_stream_of_another_size_is_refused() -> None:
    coded = encode(b"a" * 1000)
    assert len(coded) < 100 and decode(coded, 1000) == b"a" * 1000
    with pytest.raises(ValueError, match="1000"):
        decode(coded, 2**40)
    with pytest.raises(ValueError):
        decode(coded + b"x", 1000)
    with pytest.raises(ValueError):
        decode(coded[:-1], 1000)
