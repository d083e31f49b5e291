"""Checkpoints that llama.cpp can compute, their exports as GGUF, and the reading of these."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from tiny_models import (
    make_random_model,
    make_tiny_config,
    prompts,
    write_checkpoint_folder,
)
from torch import Tensor

from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.recipe.recipe import Recipe

MERGED = "th"
UNUSED_BYTE = "\u00ff"
"""Symbol of the byte 255."""
INTERLEAVED: dict[str, Any] = {
    "rope_scaling": {
        "rope_type": "default",
        "mrope_interleaved": True,
        "mrope_section": [11, 11, 10],
    },
    "rope_theta": 10000.0,
}
"""Sections that llama.cpp gives positions to as the model does."""
TEXT: dict[str, dict[str, Any]] = {
    "qwen3_vl": INTERLEAVED,
    "qwen3_vl_moe": INTERLEAVED,
    "qwen3_5": {"linear_key_head_dim": 32},
    "qwen3_5_moe": {"linear_key_head_dim": 32},
}
"""Entries of config.json that differ from those of `TINY`, by family."""


def exportable(
    family: str,
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    tied: bool = False,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> tuple[QwenVL, Path]:
    """A random float model and its checkpoint."""
    config = make_tiny_config(
        family,
        tied=tied,
        dtype=str(dtype).removeprefix("torch."),
        text={**TEXT.get(family, {}), **(text or {})},
        vision=vision,
    )
    model = make_random_model(config=config, dtype=dtype, seed=seed)
    write_checkpoint_folder(folder, model)
    add_merge(folder / "tokenizer.json")
    return model, folder


def add_merge(path: Path) -> None:
    """Give a tokenizer without merges, which llama.cpp does not load, one of them.

    Its token replaces that of a byte which UTF-8 does not have: ids of added tokens follow from the
    size of the vocabulary.
    """
    raw = json.loads(path.read_text())
    vocabulary = raw["model"]["vocab"]
    vocabulary[MERGED] = vocabulary.pop(UNUSED_BYTE)
    raw["model"]["merges"] = [list(MERGED)]
    path.write_text(json.dumps(raw))


def quantized(
    family: str, tmp_path: Path, *steps: Mapping[str, Any], format: str = "auto", **source: Any
) -> Path:
    """A checkpoint that is rounded by steps of a recipe."""
    model, folder = exportable(family, tmp_path / "source", **source)
    base = {"method": "rtn", "bits": 4, "group_size": 32}
    recipe = Recipe.from_dict({"name": "test", "step": [{**base, **step} for step in steps]})
    report = quantize_(model, recipe, prompts(model.config))
    save_quantized(model, report, folder, tmp_path / "quantized", format=format)
    return tmp_path / "quantized"


def read_file(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, str]]:
    """Keys, float32 tensors and their types of a GGUF file, as the package gguf reads them."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    tensors, types = {}, {}
    for tensor in reader.tensors:
        types[tensor.name] = tensor.tensor_type.name
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(int(size) for size in reversed(tensor.shape))
        tensors[tensor.name] = torch.from_numpy(values.copy()).reshape(shape)
    return keys, tensors, types
