"""The integer product of the reference kernel; weight-only products are in `test_linear.py`."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlpress.quant.kernels import reference
from vlpress.quant.methods.affine import QuantizedWeight
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.scheme import QuantScheme


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def product(
    x: Tensor,
    weight: QuantizedWeight,
    bias: Tensor | None = None,
    input_scale: Tensor | None = None,
) -> Tensor:
    packed = reference.prepack(weight.integers, weight.scheme.bits)
    return reference.integer_linear(
        x,
        packed,
        weight.scales,
        weight.zero_points,
        weight.scheme.bits,
        bias,
        weight.group_index,
        input_scale,
    )


def expected_sums(x: Tensor, weight: QuantizedWeight, scale: Tensor | None = None) -> Tensor:
    """int64 `[T, N, G]`: the integer part, by another way."""
    levels, _ = reference.quantize_activations(x, scale)
    groups = weight.column_groups().long()
    centred = weight.integers.long() - weight.zero_points.long()[:, groups]
    terms = levels.long()[:, None] * centred[None]
    sums = torch.zeros(len(x), weight.out_features, weight.scales.shape[1], dtype=torch.int64)
    return sums.index_add_(2, groups, terms)


def test_levels_by_hand() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, -2.5], [0.0, 0.0, 0.0, 0.0], [-2.54, 1.27, 0.0, 0.02]])
    levels, scales = reference.quantize_activations(x)
    assert levels.dtype == torch.int8
    assert levels.tolist() == [[127, 0, 2, -2], [0, 0, 0, 0], [-127, 64, 0, 1]]  # ties to even
    assert scales.flatten().tolist() == pytest.approx([1.0, 1.0, 0.02])
    assert scales.dtype == torch.float32


def test_a_given_scale_saturates() -> None:
    levels, scale = reference.quantize_activations(torch.tensor([1.0, -3.0, 300.0]), torch.ones(()))
    assert levels.tolist() == [1, -3, 127]
    assert float(scale) == 1.0
    levels, _ = reference.quantize_activations(torch.tensor([-300.0]), torch.ones(()))
    assert levels.tolist() == [-128]


@settings(max_examples=60)
@given(
    values=st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=20),
    power=st.integers(-20, 20),
)
def test_levels_are_within_half_a_step_and_follow_powers_of_two(
    values: list[float], power: int
) -> None:
    x = torch.tensor([values])
    levels, scales = reference.quantize_activations(x)
    assert int(levels.abs().max()) <= 127
    off = (levels.double() * scales.double() - x.double()).abs()
    assert bool((off <= scales.double() * 0.5001).all())
    if float(x.abs().max()) > 1e-20:
        moved, moved_scales = reference.quantize_activations(x * 2.0**power)
        assert torch.equal(moved, levels)
        assert torch.equal(moved_scales, scales * 2.0**power)


@pytest.mark.parametrize("tokens", [1, 2, 3, 17])
@pytest.mark.parametrize(
    "scheme",
    [
        QuantScheme(8, -1),
        QuantScheme(8, -1, symmetric=False),
        QuantScheme(8, 32, symmetric=False),
        QuantScheme(4, 128),
        QuantScheme(4, 128, symmetric=False),
        QuantScheme(3, 32),
    ],
)
def test_integer_part_is_exact(tokens: int, scheme: QuantScheme) -> None:
    weight = rtn(randn(24, 1280, seed=1), scheme)
    x = randn(tokens, 1280, seed=2)
    # Scales of one leave nothing but the integers.
    plain = QuantizedWeight(
        weight.integers, torch.ones_like(weight.scales), weight.zero_points, scheme
    )
    sums = expected_sums(x, weight).float().sum(-1)
    _, scales = reference.quantize_activations(x)
    torch.testing.assert_close(product(x, plain), sums * scales, rtol=1e-6, atol=0)


def test_largest_sums_are_exact() -> None:
    columns = 18944 + 2  # past 2**24 in float32, and no multiple of the inner chunk
    integers = torch.full((2, columns), 255, dtype=torch.uint8)
    integers[1, -1] = 254
    scheme = QuantScheme(8, -1, symmetric=False)
    zeros = torch.zeros(2, 1, dtype=torch.uint8)
    x = torch.full((1, columns), 127.0)
    levels, _ = reference.quantize_activations(x)
    sums = reference._integer_product(levels.float(), integers.float() - zeros.float())
    assert sums.tolist() == [[127 * 255 * columns, 127 * 255 * columns - 127]]
    weight = QuantizedWeight(integers, torch.ones(2, 1), zeros, scheme)
    assert expected_sums(x, weight)[..., 0].tolist() == sums.tolist()


@pytest.mark.parametrize("scheme", [QuantScheme(8, -1), QuantScheme(4, 128, symmetric=False)])
@pytest.mark.parametrize("static", [False, True])
def test_equals_the_float_product_of_quantized_values(scheme: QuantScheme, static: bool) -> None:
    weight, bias = rtn(randn(24, 256, seed=3), scheme), randn(24, seed=4)
    x = randn(2, 5, 256, seed=5)
    scale = torch.tensor(0.03125) if static else None
    levels, scales = reference.quantize_activations(x, scale)
    rounded = levels.double() * scales.double()
    expected = rounded @ weight.dequantize().double().t() + bias.double()
    actual = product(x, weight, bias, scale)
    assert actual.shape == (2, 5, 24)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_result_has_the_dtype_of_the_input() -> None:
    weight = rtn(randn(8, 64, seed=6), QuantScheme(8, -1))
    x = randn(3, 64, seed=7).to(torch.bfloat16)
    actual = product(x, weight, randn(8, seed=8).to(torch.bfloat16))
    assert actual.dtype == torch.bfloat16
    exact = product(x.float(), weight, randn(8, seed=8).to(torch.bfloat16).float())
    assert torch.equal(actual, exact.to(torch.bfloat16))


def test_groups_in_any_order() -> None:
    plain = rtn(randn(8, 64, seed=9), QuantScheme(4, 16))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(10))
    shuffled = QuantizedWeight(
        plain.integers[:, order],
        plain.scales,
        plain.zero_points,
        plain.scheme,
        plain.column_groups()[order],
    )
    x = randn(3, 64, seed=11)
    assert torch.equal(product(x[:, order], shuffled), product(x, plain))


def test_a_token_that_is_not_finite_affects_only_itself() -> None:
    weight = rtn(randn(8, 64, seed=12), QuantScheme(8, -1))
    x = randn(3, 64, seed=13)
    clean = product(x, weight)
    x[1, 5] = float("inf")
    actual = product(x, weight)
    assert not bool(torch.isfinite(actual[1]).any())
    assert torch.equal(actual[[0, 2]], clean[[0, 2]])


def test_tokens_do_not_depend_on_each_other() -> None:
    weight = rtn(randn(8, 64, seed=14), QuantScheme(8, -1))
    x = randn(4, 64, seed=15)
    x[2] *= 1000
    alone = torch.cat([product(row[None], weight) for row in x])
    torch.testing.assert_close(product(x, weight), alone, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
def test_same_integers_on_the_accelerator() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no accelerator")
    weight = rtn(randn(24, 1280, seed=1), QuantScheme(8, -1))
    x = randn(17, 1280, seed=2)
    levels, _ = reference.quantize_activations(x)
    moved, _ = reference.quantize_activations(x.to("cuda"))
    assert torch.equal(moved.to("cpu"), levels)
    centred = weight.integers.float() - 128
    here = reference._integer_product(levels.float(), centred)
    there = reference._integer_product(levels.float().to("cuda"), centred.to("cuda"))
    assert torch.equal(there.to("cpu"), here)
