"""Shrinking of small random checkpoints, for the tests of the preparation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny_models import prompts, small_config, small_model, write_small_checkpoint

from vlpress.model.config import ModelConfig
from vlpress.model.loading import load_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.prepare.context import Context
from vlpress.quant.prepare.running import prepare_checkpoint
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.steps.shrink import ShrinkStep

RECIPE: dict[str, Any] = {"name": "test", "step": [{"method": "rtn", "bits": 8}]}
NARROW: dict[str, Any] = {"width": "mlp", "keep": 0.5, "multiple": 16}


@dataclass(frozen=True)
class PromptContext(Context):
    """A context whose prompts are given, not encoded from samples."""

    given: Sequence[Prompt] = ()

    def prompts(self, source: Path) -> list[Prompt]:
        return list(self.given)


def source_of(
    tmp_path: Path,
    family: str = "qwen2_5_vl",
    *,
    dtype: torch.dtype = torch.float32,
    **text: Any,
) -> Path:
    form = {"shards": text.pop("shards", 1), "nested": text.pop("nested", False)}
    raw = small_config(family, **text) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    return write_small_checkpoint(tmp_path / "source", small_model(raw, dtype=dtype), **form)


def samples_of(source: Path) -> list[Prompt]:
    return prompts(ModelConfig.from_folder(source))


def shrink(
    source: Path,
    out: Path,
    given: Sequence[Prompt] | None = None,
    *,
    calibration: dict[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write the checkpoint of one step; return its record."""
    recipe = Recipe.from_dict(RECIPE | {"calibration": calibration or {}})
    context = PromptContext(recipe, given=samples_of(source) if given is None else given)
    return prepare_checkpoint(ShrinkStep(**options), source, out, context)


def logits_of(folder: Path, given: Sequence[Prompt]) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat(load_float(folder)(given))


def load_float(folder: Path) -> QwenVL:
    return load_model(folder, device="cpu", dtype=torch.float32)
