"""Layers with trained rounding: their start, their reach and their schedule."""

from __future__ import annotations

import pytest
import torch

from vlpress.quant.methods.affine import QuantizedWeight, choose_qparams, quantize, round_scales
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.recover.blocks.rounded_linear import FACTORS, REACH, RoundedLinear


def solved_layer(bits: int = 2) -> tuple[torch.Tensor, QuantizedWeight]:
    """A weight and a solution whose integers are not all the nearest ones."""
    generator = torch.Generator().manual_seed(0)
    weight, scheme = torch.randn(8, 64, generator=generator), QuantScheme(bits, 32, symmetric=False)
    scales, zeros = choose_qparams(weight, scheme)
    noise = 0.7 * scales.repeat_interleave(32, 1) * torch.randn(8, 64, generator=generator)
    integers = quantize(weight + noise, scales, zeros, scheme)
    assert not torch.equal(integers, quantize(weight, scales, zeros, scheme))
    return weight, QuantizedWeight(integers, scales, zeros, scheme)


@pytest.mark.parametrize("bits", [2, 3])
def test_it_starts_as_the_solution(bits: int) -> None:
    weight, solved = solved_layer(bits)
    layer = RoundedLinear(solved, weight, torch.ones(8))
    assert layer.quantized().equals(solved)
    x = torch.randn(3, 64)
    layer.compute_weight()
    torch.testing.assert_close(layer(x), x @ solved.dequantize().t() + 1)


def test_integers_move_by_one_at_most_and_zero_points_stay() -> None:
    weight, solved = solved_layer()
    layer = RoundedLinear(solved, weight, None)
    with torch.no_grad():
        layer.rounding.fill_(9.0)
        layer.factors.fill_(9.0)
    layer.limit()
    assert layer.rounding.max().item() == REACH and layer.factors.max().item() == FACTORS[1]
    moved = layer.quantized()
    difference = moved.integers.int() - solved.integers.int()
    assert set(difference.flatten().tolist()) <= {0, 1} and bool(difference.any())
    assert torch.equal(moved.zero_points, solved.zero_points)
    assert torch.equal(moved.scales, round_scales(moved.scales))
    assert int(moved.integers.max()) <= solved.scheme.max_level


def test_gradients_reach_rounding_and_factors() -> None:
    weight, solved = solved_layer()
    layer = RoundedLinear(solved, weight, None)
    layer.compute_weight()
    loss = layer(torch.randn(4, 64)).square().sum()
    for gradient in torch.autograd.grad(loss, (layer.rounding, layer.factors)):
        assert bool(gradient.isfinite().all()) and bool(gradient.any())


def test_the_largest_weights_of_a_row_freeze_first() -> None:
    weight, solved = solved_layer()
    layer = RoundedLinear(solved, weight, None)
    with torch.no_grad():
        layer.rounding.fill_(0.25)
    layer.freeze(0.5)
    levels = layer.levels().detach().reshape(8, 64)
    whole = levels == levels.round()
    for row in range(8):
        order = weight[row].abs().argsort(descending=True)
        assert bool(whole[row, order[:32]].all())
    assert not bool(whole.all())
    layer.freeze(1.0)
    assert torch.equal(layer.levels().detach(), layer.levels().detach().round())
