"""Layers over levels of a table."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlpress.quant.methods.grids.activation_rounding import rounded_activations
from vlpress.quant.methods.grids.table_weight import TableWeight
from vlpress.quant.recipe.scheme import TableScheme
from vlpress.quant.runtime.table_linear import TableLinear

SCHEMES = [
    TableScheme("fp8"),
    TableScheme("fp8", 32, 32, "dynamic"),
    TableScheme("fp8", activations="static"),
    TableScheme("nvfp4", activations="dynamic"),
    TableScheme("mxfp4"),
    TableScheme("ternary", -1),
]


def made(scheme: TableScheme, columns: int = 96) -> tuple[TableWeight, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, columns, generator=generator)
    grid = scheme.fit_for_rounding(weight)
    x = torch.randn(2, 3, columns, generator=generator)
    compressed: TableWeight = grid.compressed(grid.nearest(weight))
    return compressed.with_input_range(float(x.abs().max())), x


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_layers_compute_the_reference(scheme: TableScheme, dtype: torch.dtype) -> None:
    weight, x = made(scheme)
    x, bias = x.to(dtype), torch.arange(-20, 20).to(dtype) / 16  # exact in fp16
    layers = weight.calibration_layer(bias, dtype), weight.inference_layer(bias)
    first, second = (layer(x) for layer in layers)
    assert torch.equal(first, second) and first.dtype == dtype
    if scheme.activations == "none":
        expected = F.linear(x, weight.dequantize(dtype), bias)
    else:
        rounded = rounded_activations(x, scheme, weight.input_scale)
        expected = F.linear(rounded, weight.dequantize(), bias.float()).to(dtype)
    assert torch.allclose(first.float(), expected.float(), rtol=1e-2, atol=1e-2)
    assert all(layer.quantized().equals(weight) for layer in layers)
    kernel = layers[1].kernel
    assert kernel.startswith("simulated") == (scheme.activations != "none")


def test_four_bits_are_packed_at_inference() -> None:
    packed = made(TableScheme("nvfp4"))[0].inference_layer(None)
    assert packed.get_buffer("stored").shape == (40, 48)
    odd, x = made(TableScheme("nf4", -1), 97)
    layer = odd.inference_layer(None)
    assert layer.get_buffer("stored").shape == (40, 97)
    assert torch.equal(layer(x), F.linear(x, odd.dequantize()))


def test_a_change_of_dtype_leaves_the_scales() -> None:
    weight, _ = made(TableScheme("nvfp4", activations="dynamic"))
    layer = weight.inference_layer(None)
    assert isinstance(layer, TableLinear)
    assert layer.to(torch.bfloat16).quantized().equals(weight)
