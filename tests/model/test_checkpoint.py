"""Tensors as they are read from checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vlpress.model.checkpoint import CheckpointReader


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
