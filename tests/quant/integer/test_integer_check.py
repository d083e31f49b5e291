"""Layers in integer arithmetic and the kernels, and errors planted in one of the two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vlpress.quant.integer.check import check_layer, kernels_of, measure_output_scale
from vlpress.quant.integer.layer import (
    IntegerLayer,
    accumulator_scales,
    input_levels,
    is_static_w8a8,
)
from vlpress.quant.methods.affine import QuantizedWeight
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.scheme import QuantScheme

STATIC = QuantScheme(8, -1, activations="static")


def drawn(outputs: int = 24, width: int = 64) -> tuple[QuantizedWeight, Tensor, Tensor]:
    """A weight, a bias and inputs."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(outputs, width, generator=generator)
    inputs = torch.randn(40, width, generator=generator)
    bias = torch.randn(outputs, generator=generator)
    largest = float(inputs.abs().max())
    return rtn(weight, STATIC).with_input_range(largest), bias, inputs


def checked(
    layer: IntegerLayer | None = None,
    computed: QuantizedWeight | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    scale_factor: float = 1.0,
) -> dict[str, Any]:
    """Check a layer; `computed` replaces the weight of the kernels."""
    weight, bias, inputs = drawn()
    kernels, _ = kernels_of(computed or weight, bias)
    scale = measure_output_scale(kernels_of(weight, bias)[0]["reference"], inputs) * scale_factor
    layer = layer or IntegerLayer.of(weight, bias, scale)
    return check_layer(layer, weight, bias, kernels, inputs.to(dtype), scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_integers_agree_with_the_kernels(dtype: torch.dtype) -> None:
    result = checked(dtype=dtype)
    assert result["agrees"] and result["problem"] is None and result["rows"] == 40
    assert "reference" in result["kernels"]
    for entry in result["kernels"].values():
        assert entry["largest_difference"] <= 1 and entry["differing"] < 0.1
        assert entry["float_error"] < 1e-6


def test_outputs_are_those_of_exact_arithmetic() -> None:
    weight, bias, inputs = drawn(3, 8)
    layer = IntegerLayer.of(weight, bias, 0.125)
    assert weight.input_scale is not None
    levels = input_levels(inputs.numpy(), float(weight.input_scale))
    outputs = layer.rescale(layer.accumulate(levels))
    scales = accumulator_scales(weight)
    for token in range(len(levels)):
        for row in range(3):
            total = sum(
                int(level) * (int(stored) - 128)
                for level, stored in zip(levels[token], weight.integers[row], strict=True)
            )
            real = (total * scales[row] + float(bias[row])) / 0.125
            # The bias is rounded to units of the sums.
            allowed = 0.5 + 1e-6 + 0.5 * scales[row] / 0.125 + 0.25
            assert abs(outputs[token, row] - np.clip(real, -128, 127)) <= allowed


def test_a_negative_scale_mirrors_the_weights() -> None:
    weight, bias, inputs = drawn()
    mirrored = replace(weight, scales=-weight.scales)
    kernels, _ = kernels_of(mirrored, bias)
    scale = measure_output_scale(kernels["reference"], inputs)
    layer = IntegerLayer.of(mirrored, bias, scale)
    assert (layer.multipliers < 0).all()
    assert check_layer(layer, mirrored, bias, kernels, inputs, scale)["agrees"]


def test_a_changed_multiplier_is_found() -> None:
    weight, bias, inputs = drawn()
    scale = measure_output_scale(kernels_of(weight, bias)[0]["reference"], inputs)
    layer = IntegerLayer.of(weight, bias, scale)
    multipliers = layer.multipliers.copy()
    multipliers[5] = multipliers[5] * 3 // 4
    assert not checked(replace(layer, multipliers=multipliers))["agrees"]
    shifts = layer.shifts.copy()
    shifts[5] += 1
    assert not checked(replace(layer, shifts=shifts))["agrees"]
    assert checked(layer)["agrees"]


def test_a_changed_weight_byte_is_found() -> None:
    weight, _, _ = drawn()
    integers = weight.integers.clone()
    integers[7, 11] ^= 1  # the smallest possible change
    result = checked(computed=replace(weight, integers=integers))
    assert not result["agrees"]
    for entry in result["kernels"].values():
        # Far below one level of the output: the float comparison finds it.
        assert entry["largest_difference"] <= 1 and entry["float_error"] > 1e-4


def test_a_wrong_scale_is_found() -> None:
    weight, bias, inputs = drawn()
    assert weight.input_scale is not None
    doubled = replace(weight, input_scale=2 * weight.input_scale)
    assert not checked(computed=doubled)["agrees"]
    scales = weight.scales.clone()
    scales[3] *= 1 + 2.0**-8
    assert not checked(computed=replace(weight, scales=scales))["agrees"]
    scale = measure_output_scale(kernels_of(weight, bias)[0]["reference"], inputs)
    assert not checked(IntegerLayer.of(weight, bias, scale), scale_factor=1.25)["agrees"]


def test_an_overflow_of_32_bits_is_a_result() -> None:
    weight, bias, _inputs = drawn()
    layer = IntegerLayer.of(weight, bias, 1.0)
    layer = replace(layer, bias=np.full(24, 2**31 - 1))
    result = checked(layer)
    assert not result["agrees"] and "does not fit int32" in result["problem"]


def test_a_bias_beyond_32_bits_is_refused() -> None:
    weight, bias, _ = drawn()
    with pytest.raises(ValueError, match=r"a bias in units .* does not fit int32; keep"):
        IntegerLayer.of(weight, bias * 1e9, 1.0)


def test_a_table_restores_the_layer() -> None:
    weight, bias, _ = drawn()
    layer = IntegerLayer.of(weight, bias, 0.1)
    again = IntegerLayer.from_table(weight, layer.table())
    for name in ("weights", "bias", "multipliers", "shifts"):
        assert np.array_equal(getattr(layer, name), getattr(again, name))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("shifts", None, "shifts: no list; expected 24"),
        ("multipliers", [1 << 30], "multipliers: 1 entries; expected 24"),
        ("multipliers", [1 << 29] * 24, "multipliers: 536870912; allowed: whole numbers, 1073741"),
        ("bias", [0.5] * 24, "bias: 0.5; allowed: whole numbers"),
    ],
)
def test_unusable_tables_are_refused(key: str, value: Any, message: str) -> None:
    weight, bias, _ = drawn()
    table = {**IntegerLayer.of(weight, bias, 0.1).table(), key: value}
    with pytest.raises(ValueError, match=message):
        IntegerLayer.from_table(weight, table)


def test_which_schemes_are_static_w8a8() -> None:
    assert is_static_w8a8(STATIC)
    others = [QuantScheme(8, -1), QuantScheme(8, -1, activations="dynamic"), None]
    others += [QuantScheme(8, 128, activations="static"), QuantScheme(4, -1, activations="static")]
    others += [QuantScheme(8, -1, symmetric=False, activations="static")]
    assert not any(map(is_static_w8a8, others))
