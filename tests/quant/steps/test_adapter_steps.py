"""Steps with an adapter: their keys, the order of both parts, the errors, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vlpress.calib.observers import Hessian
from vlpress.calib.statistics import CROSS_MOMENT, HESSIAN
from vlpress.quant.methods.layer_inputs import LayerInputs, SharedInput
from vlpress.quant.recipe.adapter import AdapterRule
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.steps.adapter import (
    adapter_macs,
    quantized_part,
    solve_with_adapter,
    solving_memory,
)
from vlpress.quant.steps.step import Step


def step(**keys: Any) -> Step:
    first = {"method": "gptq", "group_size": 32, **({} if "grid" in keys else {"bits": 3})}
    first = first | ({"group_size": 16} if "grid" in keys else {})
    return Recipe.from_dict({"name": "test", "step": [first | keys]}).steps[0]


def problem(rows: int = 48, columns: int = 64) -> tuple[Tensor, LayerInputs]:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(400, columns, generator=generator) @ mix
    observer = Hessian(columns)
    observer.update(inputs)
    weight = torch.randn(rows, columns, generator=generator)
    weight += 4 * torch.randn(rows, 2, generator=generator) @ torch.randn(2, columns)
    return weight.bfloat16(), LayerInputs(SharedInput({HESSIAN: observer}))


def test_rules_by_key() -> None:
    assert step().adapter_rule is None and "adapter" not in step().to_dict()
    assert step(adapter_rank=8).adapter_rule == AdapterRule(8, "eora")
    assert step(adapter_rank=8, adapter="svd").adapter_rule == AdapterRule(8, "svd")
    rounded = step(method="rtn", adapter_rank=8)
    assert rounded.adapter_rule == AdapterRule(8, "svd") and not rounded.uses_activations
    calibrated = step(method="rtn", adapter_rank=8, adapter="eora")
    assert calibrated.statistics == {HESSIAN}
    assert step(method="gptaq", adapter_rank=8).statistics == {HESSIAN, CROSS_MOMENT}
    assert step(adapter_rank=8).label == "gptq int3 g32 sym, adapter of rank 8 by eora"
    data = step(adapter_rank=8, adapter="svd_first").to_dict()
    assert (data["adapter_rank"], data["adapter"]) == (8, "svd_first")
    assert Recipe.from_dict({"name": "test", "step": [data]}).steps[0].to_dict() == data


def test_keys_that_mean_nothing_are_refused() -> None:
    for keys, message in (
        ({"adapter": "svd"}, "adapter is 'svd' without adapter_rank; allowed: with adapter_rank"),
        ({"adapter_rank": 0}, "adapter_rank is 0; allowed: a whole number, at least 1"),
        (
            {"adapter_rank": 4, "adapter": "lora"},
            "adapter is 'lora'; allowed: eora, svd, svd_first",
        ),
        (
            {"method": "gptaq", "adapter_rank": 4, "adapter": "svd_first"},
            "adapter is 'svd_first' with method gptaq; allowed: eora, svd",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            step(**keys)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_the_metric_of_the_outputs_leaves_least(method: str) -> None:
    weight, inputs = problem()
    errors = {}
    for kind in ("eora", "svd"):
        rule = step(method=method, adapter_rank=8, adapter=kind)
        solved = solve_with_adapter(rule, weight, inputs)
        assert solved.adapter is not None and solved.adapter.up.dtype == torch.bfloat16
        both = solved.weight.dequantize() + solved.adapter.matrix()
        assert solved.values["adapter_error"] == inputs.error(weight, both)
        plain = inputs.error(weight, solved.weight.dequantize())
        assert solved.values["final_error"] == pytest.approx(plain, rel=1e-3)
        assert solved.values["adapter_error"] < solved.values["final_error"]
        assert "with adapter" in solved.summary
        errors[kind] = solved.values["adapter_error"]
        alone = step(method=method).solve(weight, inputs)
        assert solved.weight.equals(alone.weight)  # it comes after the weight
    assert errors["eora"] < errors["svd"]


def test_it_corrects_what_a_mask_leaves_out() -> None:
    weight, inputs = problem()
    masked = step(keep=0.5, score="wanda", adapter_rank=8)
    solved = solve_with_adapter(masked, weight, inputs)
    assert float((solved.weight.dequantize() == 0).float().mean()) >= 0.5
    assert solved.values["adapter_error"] < 0.9 * solved.values["final_error"]


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_svd_first_takes_what_is_large(method: str) -> None:
    weight, inputs = problem()
    rule = step(method=method, adapter_rank=4, adapter="svd_first")
    solved = solve_with_adapter(rule, weight, inputs)
    assert solved.adapter is not None
    rest = quantized_part(rule, weight)
    assert torch.equal(rest, weight.float() - solved.adapter.matrix())
    assert float(rest.abs().max()) < 0.5 * float(weight.abs().max())
    assert solved.weight.equals(step(method=method).solve(rest, inputs).weight)
    # All errors are relative to the outputs of the whole weight.
    both = solved.weight.dequantize() + solved.adapter.matrix()
    assert solved.values["adapter_error"] == inputs.error(weight, both)
    assert solved.values["final_error"] == pytest.approx(solved.values["adapter_error"], rel=1e-3)
    assert solved.values["rtn_error"] >= solved.values["error"]
    plain = step(method=method).solve(weight, inputs)
    assert solved.values["final_error"] < plain.values["final_error"]


def test_without_samples_there_is_no_error_to_measure() -> None:
    weight, _ = problem()
    solved = solve_with_adapter(step(method="rtn", adapter_rank=8), weight, None)
    assert not solved.values and solved.summary == "rounded, with adapter"
    assert solved.adapter is not None
    missing = weight.float() - solved.weight.dequantize()
    left = missing - solved.adapter.matrix()
    values = torch.linalg.svdvals(missing)
    assert float(left.square().sum()) == pytest.approx(float(values[8:].square().sum()), rel=1e-3)
    plain = step(method="rtn")
    assert solve_with_adapter(plain, weight, None).adapter is None
    assert torch.equal(quantized_part(plain, weight), weight)
    assert torch.equal(quantized_part(step(adapter_rank=8), weight), weight)


def test_costs_grow_with_the_smaller_side() -> None:
    assert adapter_macs(64, 32) < adapter_macs(64, 64) < adapter_macs(128, 64)
    plain, adapted = step(), step(adapter_rank=8)
    assert solving_memory(plain, 512, 64, calibrated=True) == plain.memory(512, 64, calibrated=True)
    wide = solving_memory(adapted, 4096, 4096, calibrated=True)
    assert wide >= 4 * 4096**2 * (2 + 4 + 8)
