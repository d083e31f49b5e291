"""Quantized checkpoints for the format's tests, and its layout written out by hand."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_models import prompts, small_config, small_model, write_small_checkpoint
from torch import Tensor

from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.driver.report import QuantReport
from vlpress.quant.methods.affine import QuantizedWeight
from vlpress.quant.recipe.recipe import Recipe

Exported = tuple[QwenVL, QuantReport, Path, Path]


def recipe(**step: Any) -> Recipe:
    base = {"method": "gptq", "bits": 4, "group_size": 32}
    return Recipe.from_dict({"name": "test", "step": [base | step]})


def export(
    tmp_path: Path,
    rule: Recipe,
    *,
    format: str = "gptq",
    raw: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    **source_form: Any,
) -> Exported:
    raw = (raw or small_config()) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    model = small_model(raw, dtype=dtype)
    source = write_small_checkpoint(tmp_path / "source", model, **source_form)
    report = quantize_(model, rule, prompts(model.config), format=format)
    save_quantized(model, report, source, tmp_path / "out", format=format)
    return model, report, source, tmp_path / "out"


def all_tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def packed_by_hand(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The layout of docs/format.md written out element by element, sharing no code."""
    bits = weight.scheme.bits
    rows, columns = weight.integers.shape
    groups = weight.scales.shape[1]

    def words(values: list[int]) -> list[int]:
        stream = sum(value << (bits * k) for k, value in enumerate(values))
        out = [(stream >> (32 * w)) & 0xFFFFFFFF for w in range(len(values) * bits // 32)]
        return [w - 2**32 if w >= 2**31 else w for w in out]

    qweight = [words(weight.integers[n].tolist()) for n in range(rows)]
    qzeros = [words([int(z) - 1 for z in weight.zero_points[:, g]]) for g in range(groups)]
    return {
        "qweight": torch.tensor(qweight, dtype=torch.int32).t(),
        "qzeros": torch.tensor(qzeros, dtype=torch.int32),
        "scales": weight.scales.t().half(),
        "g_idx": torch.tensor([k // (columns // groups) for k in range(columns)]).int(),
    }
