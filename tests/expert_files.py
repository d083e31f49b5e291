"""Checkpoints of models with experts in the forms of other libraries."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


def single_experts(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Split published tensors of all experts, `[experts, in, out]`, into weights `[out, in]`."""
    result: dict[str, Tensor] = {}
    for name, value in tensors.items():
        path, _, leaf = name.rpartition(".")
        if not path.endswith(".experts"):
            result[name] = value
            continue
        layers = ("gate_proj", "up_proj") if leaf == "gate_up_proj" else (leaf,)
        for expert, matrix in enumerate(value):
            for layer, part in zip(layers, matrix.t().chunk(len(layers)), strict=True):
                result[f"{path}.{expert}.{layer}.weight"] = part.contiguous()
    return result


def write_single_experts(folder: Path, out: Path) -> Path:
    """Write a published checkpoint as transformers 5.0 does, with weights of single experts."""
    shutil.copytree(folder, out)
    save_file(single_experts(load_file(folder / "model.safetensors")), out / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"transformers_version": "5.0.0"}))
    return out
