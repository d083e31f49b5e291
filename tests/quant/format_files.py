"""Constructed layers and quantized checkpoint folders for the tests of all formats."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tiny_models import prompts, small_config, small_model, write_small_checkpoint
from torch import Tensor

from vlpress.model.config import ModelConfig
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.formats.contents import Contents
from vlpress.quant.checkpoint.formats.format import integers_of
from vlpress.quant.checkpoint.safetensors_folder.reading import QuantizedCheckpoint
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.driver.report import QuantReport
from vlpress.quant.methods.affine import QuantizedWeight
from vlpress.quant.methods.grids.table_weight import TableWeight
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme, Scheme, TableScheme


def made_layer(scheme: QuantScheme, rows: int = 64, columns: int = 96) -> QuantizedWeight:
    """A layer of numbers that need no generator: every level, every zero point, many scales."""
    n, k = torch.arange(rows)[:, None], torch.arange(columns)[None]
    groups = torch.arange(scheme.groups(columns))[None]
    levels = scheme.max_level + 1
    zero_points = torch.full((rows, groups.shape[1]), scheme.midpoint)
    if not scheme.symmetric:
        zero_points = (n * 7 + groups * 3) % levels
    return QuantizedWeight(
        integers=((n * 5 + k * 3 + n * k) % levels).to(torch.uint8),
        scales=(1 + (n * 11 + groups * 29) % 128).float() / 2.0 ** (8 + n % 5),
        zero_points=zero_points.to(torch.uint8),
        scheme=scheme,
        input_scale=torch.tensor(0.0390625) if scheme.activations == "static" else None,
    )


def made_table_layer(scheme: TableScheme, rows: int = 64, columns: int = 96) -> TableWeight:
    """A layer of levels that needs no generator: every level, and scales that its form holds."""
    n, k = torch.arange(rows)[:, None], torch.arange(columns)[None]
    r, g = (torch.arange(size) for size in scheme.scale_shape(rows, columns))
    exponents = (r[:, None] * 3 + g[None] * 5) % 7
    eighths = 8 if scheme.table.scale_form == "e8m0" else 8 + (r[:, None] + g[None]) % 8
    has_divisor = scheme.has_matrix_scale
    return TableWeight(
        indices=((n * 5 + k * 3 + n * k) % len(scheme.table.levels)).to(torch.uint8),
        scales=eighths / 2.0 ** (3 + exponents),
        scheme=scheme,
        divisor=torch.tensor(693.5) if has_divisor else None,
        input_scale=torch.tensor(0.0390625) if scheme.calibrates_input else None,
    )


def fingerprint(tensor: Tensor) -> list[Any]:
    """Type, shape and sha256 of the bytes as a file has them."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    kind = str(tensor.dtype).removeprefix("torch.")
    return [kind, list(tensor.shape), hashlib.sha256(raw).hexdigest()]


def contents(
    schemes: Mapping[str, Scheme] | Scheme, *, family: str = "qwen2_5_vl", **text: Any
) -> Contents:
    """Contents of a small model; one scheme means all decoder layers."""
    config = ModelConfig.from_dict(small_config(family, **text))
    if isinstance(schemes, Scheme):
        linears = Contents(config, {}).linears.values()
        schemes = {spec.name: schemes for spec in linears if spec.stage == "decoder"}
    return Contents(config, schemes)


def recipe(*steps: dict[str, Any]) -> Recipe:
    base = {"method": "rtn", "bits": 4, "group_size": 32}
    return Recipe.from_dict({"name": "test", "step": [base | step for step in steps or ({},)]})


def checkpoint(
    tmp_path: Path,
    rule: Recipe,
    format: str,
    *,
    raw: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    **source_form: Any,
) -> tuple[QwenVL, QuantReport, Path]:
    """A small model, quantized and written; the folder is `tmp_path` / format."""
    raw = (raw or small_config()) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    model = small_model(raw, dtype=dtype)
    source = tmp_path / "source"
    if not source.exists():
        write_small_checkpoint(source, model, **source_form)
    report = quantize_(model, rule, prompts(model.config))
    save_quantized(model, report, source, tmp_path / format, format=format)
    return model, report, tmp_path / format


def quantization_config(folder: Path) -> dict[str, Any]:
    written: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config: dict[str, Any] = written["quantization_config"]
    return config


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of the `quantization_config`; None removes one."""
    raw = json.loads((folder / "config.json").read_text())
    merged = raw["quantization_config"] | changes
    raw["quantization_config"] = {k: v for k, v in merged.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(raw))


def weights_of(folder: Path) -> dict[str, QuantizedWeight]:
    checkpoint = QuantizedCheckpoint(folder)
    return {name: integers_of(checkpoint.weight(name)) for name in checkpoint.schemes}


def same_weights(first: Path, second: Path) -> bool:
    one, two = weights_of(first), weights_of(second)
    return list(one) == list(two) and all(one[name].equals(two[name]) for name in one)


def same_logits(model: QwenVL, other: QwenVL) -> bool:
    with torch.no_grad():
        samples = prompts(model.config)
        pairs = zip(model(samples), other(samples), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)
