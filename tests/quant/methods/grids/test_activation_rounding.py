"""Simulated activations: parity with compressed-tensors, and values by hand."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vlpress.quant.methods.grids.activation_rounding import (
    CalibrationRounding,
    calibrated_input_scale,
    rounded_activations,
)
from vlpress.quant.recipe.scheme import TableScheme

PRESETS = {
    "FP8_DYNAMIC": TableScheme("fp8", activations="dynamic"),
    "FP8_BLOCK": TableScheme("fp8", 128, 128, "dynamic"),
    "NVFP4": TableScheme("nvfp4", activations="dynamic"),
    "MXFP4": TableScheme("mxfp4", activations="dynamic"),
}


def inputs(rows: int = 33, columns: int = 256) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, rows, columns, generator=generator)
    return x * torch.randn(columns, generator=generator).exp()


def rounded_by_the_library(name: str, x: Tensor, divisor: Tensor) -> Tensor:
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    args = quantization.preset_name_to_scheme(name, ["Linear"]).input_activations
    module: Any = nn.Linear(1, 1)
    module.quantization_status = quantization.QuantizationStatus.INITIALIZED
    if name == "NVFP4":
        module.input_global_scale = nn.Parameter(divisor.reshape(1), requires_grad=False)
    rounded: Tensor = forward.forward_quantize(module, x, "input", args)
    return rounded


@pytest.mark.parametrize("name", PRESETS)
def test_values_are_those_of_compressed_tensors(name: str) -> None:
    x = inputs()
    divisor = torch.tensor(448 * 6 / float(x.abs().max()))
    expected = rounded_by_the_library(name, x, divisor)
    actual = rounded_activations(x, PRESETS[name], divisor)
    if name == "NVFP4":
        # The library divides by 6 before it multiplies by the divisor: a few scales are rounded
        # to the other neighbour, and their groups with them.
        equal = (actual == expected).reshape(-1, 16).all(dim=1)
        assert float(equal.float().mean()) > 0.99
    else:
        assert torch.equal(actual, expected)


def test_static_scales_saturate() -> None:
    scheme = TableScheme("fp8", activations="static")
    x = torch.tensor([[0.0, 1.0, -1.06, 300.0, -1000.0]])
    rounded = rounded_activations(x, scheme, torch.tensor(0.5))
    assert rounded.tolist() == [[0.0, 1.0, -1.0, 224.0, -224.0]]


@pytest.mark.parametrize("name", PRESETS)
def test_zeros_stay_and_broken_groups_become_nan(name: str) -> None:
    scheme, divisor = PRESETS[name], torch.tensor(10.0)
    assert not bool(rounded_activations(torch.zeros(2, 256), scheme, divisor).any())
    for bad in (torch.nan, torch.inf):
        x = torch.ones(2, 256)
        x[1, 3] = bad
        rounded = rounded_activations(x, scheme, divisor)
        assert bool(rounded[0].isfinite().all()) and bool(rounded[1, 3].isnan())
        width = 256 if scheme.input_group == -1 else scheme.input_group
        assert int(rounded[1].isnan().sum()) == width


@given(seed=st.integers(0, 1000), exponent=st.integers(-20, 8))
def test_errors_are_half_a_step_at_most(seed: int, exponent: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 128, generator=generator) * 2.0**exponent
    fp8 = rounded_activations(x, PRESETS["FP8_DYNAMIC"])
    largest = x.abs().amax(dim=1, keepdim=True)
    # 3 bits of fraction, and subnormal numbers below 2**-6 / 448 of the largest one
    bound = torch.maximum(x.abs() * 2.0**-4, largest * 2.0**-10 / 448) * 1.0001
    assert bool(((fp8 - x).abs() <= bound).all())
    fp4 = rounded_activations(x, PRESETS["MXFP4"])
    assert bool(((fp4 - x).abs() <= largest / 3).all())


@pytest.mark.parametrize(
    "scheme", [*PRESETS.values(), TableScheme("fp8", activations="static")], ids=lambda s: s.label
)
def test_calibration_rounds_as_the_layer_will(scheme: TableScheme) -> None:
    rounding = scheme.calibration_rounding()
    assert rounding == CalibrationRounding(scheme) and rounding is not None
    x = inputs()
    for dtype in (torch.float32, torch.bfloat16):
        own = calibrated_input_scale(float(x.to(dtype).abs().max()), scheme)
        expected = rounded_activations(x.to(dtype), scheme, own).to(dtype)
        assert torch.equal(rounding(x.to(dtype)), expected) and expected.dtype == dtype
    # The layer's range is that of all samples, here 3.7 times as large: its errors are alike.
    later = rounded_activations(
        x, scheme, calibrated_input_scale(3.7 * float(x.abs().max()), scheme)
    )
    before, after = ((rounded - x).square().mean() for rounded in (rounding(x), later))
    assert float(after / before) == pytest.approx(1, abs=0.1)


def test_calibration_leaves_what_it_cannot_round() -> None:
    rounding = CalibrationRounding(PRESETS["NVFP4"])
    assert rounding(torch.zeros(0, 32)).shape == (0, 32)
    broken = torch.full((2, 32), torch.inf)
    assert torch.equal(rounding(broken), broken)  # the driver refuses it, by its range
    assert TableScheme("nvfp4").calibration_rounding() is None
