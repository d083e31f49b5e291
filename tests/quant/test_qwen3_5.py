"""Quantization rules of Qwen3.5: rows with two uses, two kinds of layers, kept layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tiny_models import prompts, small_config, small_model
from torch import Tensor

from vlpress.model.families import family_of
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.driver import awq_scaling
from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.methods.awq import AWQResult, awq_scales
from vlpress.quant.methods.layer_error import split_rows
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.targets import weight_of

INT4 = {"method": "rtn", "bits": 4, "group_size": 32}
EXPERTS = {"ignore": ["*.mlp.experts.*"]}


def recipe(*steps: dict[str, Any]) -> Recipe:
    return Recipe.from_dict({"name": "test", "step": list(steps)})


def logits(model: QwenVL) -> Tensor:
    with torch.no_grad():
        return torch.cat(model(prompts(model.config)))


def test_row_parts_are_the_queries_and_the_gates() -> None:
    """Without its gate rows a layer gives half of its attention: the sigmoid of 0."""
    model = small_model(small_config("qwen3_5"))
    specs = {spec.name: spec for spec in family_of(model.config).linears(model.config)}
    path = "model.layers.1.self_attn"
    spec = specs[f"{path}.q_proj"]
    assert spec.row_parts == (32, 32)
    seen: list[Tensor] = []
    reader = model.get_submodule(f"{path}.o_proj")
    reader.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    queries, gates = split_rows([weight_of(model, spec)], [spec.row_parts])
    assert len(queries[0]) == len(gates[0]) == 4 * 32
    weight = model.get_parameter(f"{path}.q_proj.weight")
    rows = weight.data.view(4, 2, 32, -1)
    sample = prompts(model.config)[:1]
    with torch.no_grad():
        rows[:, 1] = 0
        model(sample)
        without_gates = seen.pop()
        rows[:, 1] = 1e3  # gates of one sign per token and channel, saturated
        model(sample)
    gated = seen.pop()
    full = gated.abs() > 1e-6
    assert bool(full.any())
    assert not bool(full.all())
    torch.testing.assert_close(gated[full], 2 * without_gates[full], rtol=1e-4, atol=1e-6)


def test_awq_scores_rows_of_different_uses_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(small_config("qwen3_5"))
    given: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def record(weights: Sequence[Tensor], *args: Any, **options: Any) -> AWQResult:
        given[tuple(len(weight) for weight in weights)] = options["row_parts"]
        return awq_scales(weights, *args, **options)

    monkeypatch.setattr(awq_scaling, "awq_scales", record)
    targets = {"targets": ["*.layers.0.linear_attn.in*", "*.layers.1.self_attn.q_proj"]}
    report = quantize_(
        model, recipe({"method": "awq", "points": 2, **targets}, INT4), prompts(model.config)
    )
    # Queries, keys and values of linear attention with their gate; the other kind's queries with
    # their gates, and keys and values, which count as one.
    assert given == {(96, 64): [(16, 16, 64), ()], (256, 64, 64): [(32, 32), (), ()]}
    assert [len(row.planned.linears) for row in report.transforms] == [4, 3]
