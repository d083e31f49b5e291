"""Damaged containers give an error that names the file, and never other tensors."""

from __future__ import annotations

import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from fuzz_container import container_seed, damage_container
from torch import Tensor

from vlpress.model.packed.reading import PackedFile
from vlpress.model.packed.writing import unpack_file

CASES = 1000
MOST_MEMORY = 2**26
"""Bytes; a forged size claims far more."""


def tensors_of(path: Path) -> dict[str, Tensor]:
    file = PackedFile(path)
    return {name: file.get_tensor(name) for name in file.keys()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype and torch.equal(one[name], two[name]) for name in one
    )


def damaged(sound: bytes, seed: int) -> bytes:
    data = damage_container(sound, seed)
    assert data is not None and data != sound
    return data


def unpack(path: Path, target: Path) -> bytes:
    unpack_file(path, target, threads=1, on_bytes=lambda count: None)
    return target.read_bytes()


@pytest.mark.parametrize("cases", [200, pytest.param(CASES, marks=pytest.mark.slow)])
def test_damaged_containers_are_refused_by_name(tmp_path: Path, cases: int) -> None:
    path, target = tmp_path / "x.safetensors.vlz", tmp_path / "x.safetensors"
    sound = container_seed()
    path.write_bytes(sound)
    original = unpack(path, target)
    harmless = 0
    for seed in range(cases):
        path.write_bytes(damaged(sound, seed))
        try:
            unpacked = unpack(path, target)
        except ValueError as error:
            message = str(error)
            assert str(path) in message and "\n" not in message, message
        else:
            # An index with the same values in other bytes, for example.
            assert unpacked == original
            harmless += 1
    assert harmless <= cases // 50


def test_forged_sizes_allocate_nothing(tmp_path: Path) -> None:
    path, target = tmp_path / "x.safetensors.vlz", tmp_path / "x.safetensors"
    sound = container_seed()
    tracemalloc.start()
    for seed in range(CASES, CASES + 60):
        path.write_bytes(damaged(sound, seed))
        with suppress(ValueError):
            unpack(path, target)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MOST_MEMORY


@pytest.mark.parametrize("seed", range(0, CASES, 20))
def test_tensors_of_a_damaged_container_are_refused_or_the_same(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "x.safetensors.vlz"
    sound = container_seed()
    path.write_bytes(sound)
    expected = tensors_of(path)
    path.write_bytes(damaged(sound, seed))
    try:
        tensors = tensors_of(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert same(tensors, expected)


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path, target = tmp_path / "x.safetensors.vlz", tmp_path / "x.safetensors"
    sound = container_seed()
    for position in range(0, len(sound), 11):
        flipped = bytearray(sound)
        flipped[position] ^= 1 << (position % 8)
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"x\.safetensors\.vlz"):
            unpack(path, target)


def test_the_message_names_block_and_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors.vlz"
    path.write_bytes(container_seed())
    file = PackedFile(path)
    block = file.segment("b").blocks[1]
    flipped = bytearray(path.read_bytes())
    flipped[block.offset + 1] ^= 4
    path.write_bytes(flipped)
    assert torch.equal(PackedFile(path).get_tensor("a"), file.get_tensor("a"))
    with pytest.raises(ValueError, match="block 1 of tensor 'b'"):
        PackedFile(path).get_tensor("b")


def test_a_git_lfs_pointer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors.vlz"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 14145776\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        PackedFile(path)


def test_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors.vlz"
    data = bytearray(container_seed())
    data[8] = 2
    path.write_bytes(data)
    with pytest.raises(ValueError, match="version 2"):
        PackedFile(path)
