"""Files of `write_tensors`, read by the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlpress.common.lazy_tensor import STORED_DTYPES, LazyTensor, TensorLike
from vlpress.common.safetensors_writer import write_tensors
from vlpress.model.checkpoint import lazy_tensors

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)
CASES = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
        lambda name: name != "__metadata__"
    ),
    st.tuples(st.sampled_from(list(STORED_DTYPES.values())), SHAPES),
    max_size=6,
)


def example(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return (torch.arange(torch.Size(shape).numel()) % 3).reshape(shape).to(dtype)


@settings(deadline=None, max_examples=60)
@given(CASES)
def test_the_library_reads_the_written_files(
    tmp_path_factory: pytest.TempPathFactory, cases: dict[str, tuple[torch.dtype, tuple[int, ...]]]
) -> None:
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    tensors = {name: example(*case) for name, case in cases.items()}
    write_tensors(tensors, path)
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
    with safe_open(str(path), "pt") as file:
        assert file.metadata() == {"format": "pt"}
    lazy = lazy_tensors(path)
    assert all(torch.equal(lazy[name].read(), tensor) for name, tensor in tensors.items())
    assert {n: (t.dtype, t.shape, t.nbytes) for n, t in lazy.items()} == {
        n: (t.dtype, tuple(t.shape), t.nbytes) for n, t in tensors.items()
    }


def test_the_bytes_are_the_librarys(tmp_path: Path) -> None:
    tensors = {"b": torch.randn(3, 5), "a": torch.randn(7).half(), "c": torch.ones(2).bool()}
    write_tensors(tensors, tmp_path / "vlpress")
    save_file(tensors, tmp_path / "library", metadata={"format": "pt"})
    assert (tmp_path / "vlpress").read_bytes() == (tmp_path / "library").read_bytes()


def test_views_and_lazy_tensors(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    order: list[str] = []

    def read() -> Tensor:
        order.append("read")
        return whole[1:3]

    tensors: dict[str, TensorLike] = {
        "view": whole.t()[1:3],
        "same": whole,
        "lazy": LazyTensor(whole.dtype, (2, 6), read),
    }
    write_tensors(tensors, tmp_path / "x")
    loaded = load_file(tmp_path / "x")
    assert order == ["read"]
    assert torch.equal(loaded["view"], whole.t()[1:3]) and torch.equal(loaded["same"], whole)
    assert torch.equal(loaded["lazy"], whole[1:3])


def test_a_lazy_tensor_that_changed_is_an_error(tmp_path: Path) -> None:
    lazy = LazyTensor(torch.float32, (3,), lambda: torch.zeros(2))
    with pytest.raises(ValueError, match=r"\bx\b.*\(3,\) of torch.float32.*\(2,\)"):
        write_tensors({"x": lazy}, tmp_path / "x")


def test_the_header_is_padded_to_eight_bytes(tmp_path: Path) -> None:
    for length in range(1, 10):
        write_tensors({"n" * length: torch.ones(1)}, tmp_path / "x")
        data = (tmp_path / "x").read_bytes()
        size = int.from_bytes(data[:8], "little")
        assert size % 8 == 0 and len(data) == 8 + size + 4
        assert json.loads(data[8 : 8 + size])["n" * length]["data_offsets"] == [0, 4]
