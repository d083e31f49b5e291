"""Layers during calibration: the outputs of the packed layer, without packing."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from vlpress.quant.methods.affine import QuantizedWeight
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.runtime.linear import QuantLinear, storable_bias
from vlpress.quant.runtime.unpacked_linear import UnpackedLinear

pytestmark = pytest.mark.usefixtures("reference_kernel")


def make(
    bits: int, activations: str, *, shuffled: bool = False
) -> tuple[nn.Linear, QuantizedWeight]:
    generator = torch.Generator().manual_seed(bits)
    linear = nn.Linear(64, 24)
    linear.weight.data = torch.randn(24, 64, generator=generator)
    linear.bias.data = torch.randn(24, generator=generator)
    scheme = QuantScheme(bits, 32, activations=activations)  # type: ignore[arg-type]
    weight = rtn(linear.weight, scheme)
    if activations == "static":
        weight = replace(weight, input_scale=torch.tensor(2.0**-5))
    if shuffled:
        order = torch.randperm(64, generator=generator)
        groups = weight.column_groups()[order].contiguous()
        weight = replace(weight, integers=weight.integers[:, order], group_index=groups)
    return linear, weight


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("activations", ["none", "dynamic", "static"])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_outputs_are_those_of_the_packed_layer(
    bits: int, activations: str, shuffled: bool, dtype: torch.dtype
) -> None:
    linear, weight = make(bits, activations, shuffled=shuffled)
    unpacked = UnpackedLinear(weight, linear.bias, dtype)
    packed = QuantLinear(weight, storable_bias(linear.bias))
    x = torch.randn(2, 40, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(unpacked(x), packed(x))


def test_the_weight_is_the_one_given() -> None:
    linear, weight = make(4, "none", shuffled=True)
    layer = UnpackedLinear(weight, linear.bias)
    assert layer.quantized().equals(weight)
    assert layer.quantized().integers.data_ptr() == weight.integers.data_ptr()
    assert layer.quantized().inference_layer(layer.bias).quantized().equals(weight)


def test_releasing_the_block_frees_the_tensors() -> None:
    layer = UnpackedLinear(make(4, "none")[1], dtype=torch.float32)
    tensors = [*layer.parameters(), *layer.buffers()]
    assert len(tensors) == 4
    assert all(tensor.is_meta for tensor in layer.to("meta").buffers())


def test_rejects() -> None:
    _, weight = make(8, "static")
    with pytest.raises(ValueError, match="no input scale"):
        UnpackedLinear(replace(weight, input_scale=None))
    with pytest.raises(ValueError, match="65504"):
        UnpackedLinear(weight, torch.tensor([1e6]))
