"""Layers over levels of a table."""

from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vlpress.quant.kernels import library
from vlpress.quant.methods.grids.activation_rounding import rounded_activations
from vlpress.quant.methods.grids.table_weight import TableWeight
from vlpress.quant.recipe.scheme import TableScheme
from vlpress.quant.runtime.table_linear import TableLinear
from vlpress.quant.runtime.tiled_linear import FusedLinears, can_fuse

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


def prepared(weight: TableWeight, bias: Tensor | None = None) -> TableLinear:
    kernels = library.find_kernels("portable")
    if isinstance(kernels, str):
        pytest.skip(kernels)
    layer = weight.inference_layer(bias)
    assert isinstance(layer, TableLinear) and layer.why_not() is None
    layer.select_kernel(kernels)
    return layer


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prepared_layer_computes_the_reference(scheme: TableScheme, dtype: torch.dtype) -> None:
    weight, x = made(scheme)
    x, bias = x.to(dtype), torch.arange(-20, 20).to(dtype) / 16
    reference, layer = weight.inference_layer(bias), prepared(weight, bias)
    simulated = scheme.activations != "none"
    assert reference.kernel == (
        f"simulated {scheme.grid} activations" if simulated else "reference"
    )
    assert layer.kernel == (
        f"simulated {scheme.grid} activations, portable" if simulated else "portable"
    )
    actual, expected = layer(x), reference(x)
    assert actual.dtype == dtype
    error = (actual.float() - expected.float()).norm() / expected.float().norm()
    # The reference rounds weights to bf16.
    assert float(error) < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.label)
def test_a_prepared_layer_keeps_one_form_and_gives_the_weight_back(scheme: TableScheme) -> None:
    weight, _ = made(scheme)
    state = weight.inference_layer(None).state_dict()
    layer = prepared(weight)
    assert layer.stored is None and layer.scales is None
    assert layer.quantized().equals(weight)
    assert layer.to(torch.bfloat16).quantized().equals(weight)
    after = layer.state_dict()
    assert state.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in state.items())
    layer.load_state_dict(state)
    assert layer.tiles is None and layer.quantized().equals(weight)
    layer.to("meta")
    assert layer.get_buffer("stored").is_meta


def test_only_tables_alike_are_fused() -> None:
    weight, x = made(TableScheme("nvfp4"))
    layers = prepared(weight), prepared(weight)
    assert can_fuse(layers)
    kernels = library.find_kernels("portable")
    assert not isinstance(kernels, str)
    outputs = FusedLinears(layers, kernels)(x)
    assert all(torch.equal(out, layers[0](x)) for out in outputs)
    assert not can_fuse((layers[0], prepared(made(TableScheme("nf4", 16))[0])))
    # Inputs that are rounded before the product cannot be shared.
    rounding = prepared(made(TableScheme("nvfp4", activations="dynamic"))[0])
    assert not can_fuse((rounding, rounding))


@pytest.mark.parametrize("activations", ["none", "dynamic"])
def test_fp8_layers_on_triton_kernels(activations: Literal["none", "dynamic"]) -> None:
    pytest.importorskip("triton")
    weight, _ = made(TableScheme("fp8", activations=activations))
    layer = weight.inference_layer(None)
    assert isinstance(layer, TableLinear)
    x = torch.randn(3, weight.in_features, generator=torch.Generator().manual_seed(2))
    expected = layer(x)
    layer.select_kernel(None)
    assert layer.kernel == "triton" and layer.multiplies_inputs
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
    assert layer.quantized().equals(weight)
    assert layer.to(torch.bfloat16).quantized().equals(weight)  # scales stay float32


def test_reasons_against_the_kernels_are_named() -> None:
    odd, _ = made(TableScheme("fp8"), 97)
    assert "groups of 97 of 97 inputs" in str(odd.inference_layer(None).why_not())
    away = made(TableScheme("fp8"))[0].inference_layer(None).to("meta")
    assert "no kernel but those of the CPU" in str(away.why_not())
