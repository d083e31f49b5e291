"""Tensors as they are read from checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.stored_files import open_file


def test_large_tensors_are_copied_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {
        "wide": torch.randn(7, 5),
        "flat": torch.arange(23),
        "single": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    reader = CheckpointReader(tmp_path)
    for limit in (1, 40, 2**26):
        monkeypatch.setattr("vlpress.model.checkpoint.COPY_CHUNK", limit)
        for name, tensor in tensors.items():
            found = reader.copy(name)
            assert found.dtype == tensor.dtype and torch.equal(found, tensor)


def test_files_are_mapped_anew_after_many_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = {name: torch.randn(16) for name in "abcdef"}  # of 64 bytes
    save_file(tensors, tmp_path / "model.safetensors")
    reader, opened = CheckpointReader(tmp_path), []

    def count(path: Path) -> Any:
        opened.append(path)
        return open_file(path)

    monkeypatch.setattr("vlpress.model.checkpoint.open_file", count)
    monkeypatch.setattr("vlpress.model.checkpoint.MAPPED_BYTES", 150)
    for name, tensor in tensors.items():
        assert torch.equal(reader.tensor(name), tensor)
    assert len(opened) == 2


def test_a_file_that_is_cut_off_after_a_read_is_an_error(tmp_path: Path) -> None:
    save_file({"a": torch.randn(5000), "b": torch.randn(5000)}, tmp_path / "model.safetensors")
    reader = CheckpointReader(tmp_path)
    reader.copy("a")
    os.truncate(tmp_path / "model.safetensors", 9000)
    with pytest.raises(ValueError, match=r"model\.safetensors: truncated .*9000 bytes"):
        reader.copy("b")
