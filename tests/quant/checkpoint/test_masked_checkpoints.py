"""A mask in checkpoints: the zeros of every format, and their share in the record."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from format_files import checkpoint, recipe, same_logits, weights_of
from tiny_models import small_config

from vlpress.cli.console import inspect_table
from vlpress.quant.api import inspect
from vlpress.quant.checkpoint.formats.table import FORMATS
from vlpress.quant.checkpoint.model_card import Base, write_model_card
from vlpress.quant.driver.pipeline import load_quantized
from vlpress.quant.recipe.scheme import QuantScheme

pytestmark = pytest.mark.usefixtures("reference_kernel")

HOLDING = [name for name, form in FORMATS.items() if QuantScheme.kind in form.kinds]


@pytest.mark.parametrize("format", HOLDING)
def test_every_format_has_the_zeros(tmp_path: Path, format: str) -> None:
    rule = recipe({"keep": "2:4", "score": "magnitude"})
    model, report, folder = checkpoint(tmp_path, rule, format)
    weights = weights_of(folder)
    assert weights.keys() == {row.name for row in report.plan.quantized}
    for layer in report.layers:
        zeros = weights[layer.row.name].dequantize() == 0
        assert bool((zeros.reshape(len(zeros), -1, 4).sum(dim=-1) >= 2).all())
        assert layer.values["zeros"] == pytest.approx(float(zeros.float().mean()), abs=1e-6)
        assert layer.values["zeros"] < 0.7
    assert same_logits(model, load_quantized(folder, device="cpu"))


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
def test_shares_are_recorded_by_step(tmp_path: Path, method: str) -> None:
    attention: dict[str, Any] = {"method": method, "targets": ["model.layers.*.self_attn.*"]}
    steps = [
        attention | {"keep": 0.75, "score": "sparsegpt"},
        {"method": "rtn", "targets": ["model.layers.*.mlp.*"], "keep": "6:8"},
        {"method": "rtn", "targets": ["visual.blocks.*.attn.*"]},
    ]
    _, report, folder = checkpoint(
        tmp_path, recipe(*steps), "compressed-tensors", raw=small_config()
    )
    shown = inspect(folder)
    by_name = {layer["name"]: layer for layer in shown["layers"]}
    assert [(mask["keep"], mask["score"], mask["layers"]) for mask in shown["masks"]] == [
        (0.75, "sparsegpt", 8),
        ("6:8", "wanda", 6),
    ]
    for mask in shown["masks"]:
        members = [
            row
            for row in report.plan.quantized
            if row.step is not None and list(row.step.targets) == mask["targets"]
        ]
        zeros = sum(by_name[row.name]["zeros"] * row.spec.weights for row in members)
        assert mask["zeros"] == pytest.approx(zeros / sum(row.spec.weights for row in members))
    assert 0.25 <= shown["masks"][0]["zeros"] < 0.5
    assert 0.25 <= shown["masks"][1]["zeros"] < 0.5
    assert "zeros" not in by_name["visual.blocks.0.attn.qkv"]
    table = inspect_table(shown)
    share = f"{shown['masks'][1]['zeros']:.1%}"
    assert f"{share} of the weights of 6 layers (keep 6:8 by wanda)" in table
    write_model_card(folder, Base("base", {}))
    assert f"{share} of the weights of 6 layers" in (folder / "README.md").read_text()
