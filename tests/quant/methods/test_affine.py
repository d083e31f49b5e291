import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.quant.methods.affine import (
    MAX_SCALE,
    MIN_SCALE,
    choose_qparams,
    dequantize,
    quantize,
    round_scales,
)
from vlpress.quant.methods.grids.integer_grid import may_be_signed
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.scheme import QuantScheme


def random_weight(rows: int = 6, columns: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_symmetric_int4_by_hand() -> None:
    weight = torch.tensor([[7.5, -7.5, 0.0, 1.4], [0.0, 0.0, 0.0, 0.0]])
    scheme = QuantScheme(4, -1)
    scales, zero_points = choose_qparams(weight, scheme)
    assert scales.tolist() == [[1.0], [1.0]]  # max|W| / 7.5, and 1 for a row of zeros
    assert zero_points.tolist() == [[8], [8]]
    integers = quantize(weight, scales, zero_points, scheme)
    # 7.5 would round to 16 and is clamped; -7.5 lands on 0.
    assert integers.tolist() == [[15, 0, 8, 9], [8, 8, 8, 8]]
    assert dequantize(integers, scales, zero_points).tolist() == [[7, -8, 0, 1], [0, 0, 0, 0]]


def test_signed_int4_by_hand() -> None:
    """The largest weight gets the end with one level more, whichever side it is on."""
    weight = torch.tensor([[8.0, -8.0, 0.0, 1.4], [-4.0, 3.0, 3.9, 0.2], [0.0, 0.0, 0.0, 0.0]])
    scheme = QuantScheme(4, -1)
    scales, zero_points = choose_qparams(weight, scheme, signed=True)
    assert scales.tolist() == [[-1.0], [0.5], [1.0]]
    assert zero_points.tolist() == [[8]] * 3
    integers = quantize(weight, scales, zero_points, scheme)
    # -8 would be 16 and 3.9 too; they are clamped.
    assert integers.tolist() == [[0, 15, 8, 7], [0, 14, 15, 8], [8, 8, 8, 8]]
    assert dequantize(integers, scales, zero_points).tolist() == [
        [8, -7, 0, 1],
        [-4, 3, 3.5, 0],
        [0, 0, 0, 0],
    ]


def test_asymmetric_scales_are_never_negative() -> None:
    scheme = QuantScheme(4, 16, symmetric=False)
    plain, signed = (choose_qparams(random_weight(), scheme, signed=s) for s in (False, True))
    assert torch.equal(plain[0], signed[0]) and torch.equal(plain[1], signed[1])


def test_asymmetric_range_contains_zero() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    scheme = QuantScheme(8, -1, symmetric=False)
    scales, zero_points = choose_qparams(weight, scheme)
    assert zero_points.tolist() == [[0]]
    assert float(scales[0, 0]) == pytest.approx(4 / 255, rel=2**-8)


def test_int8_midpoint() -> None:
    _, zero_points = choose_qparams(random_weight(), QuantScheme(8, 32))
    assert torch.equal(zero_points, torch.full((6, 2), 128, dtype=torch.uint8))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, MAX_SCALE, width=32), min_size=1, max_size=20))
def test_scales_are_exact_in_bf16_and_fp16(values: list[float]) -> None:
    scales = torch.tensor(values)
    rounded = round_scales(scales)
    assert torch.equal(round_scales(-scales), -rounded)
    assert torch.equal(rounded, rounded.bfloat16().float())
    assert torch.equal(rounded, rounded.half().float())
    assert bool((rounded >= MIN_SCALE).all())
    # half a bf16 step, or half a step of fp16's subnormals
    slack = torch.maximum(scales * 2.0**-8, torch.tensor(2.0**-24))
    assert bool(((rounded - scales).abs() <= slack).all())


def test_scales_out_of_range() -> None:
    for scale in (70000.0, -70000.0):
        with pytest.raises(ValueError, match=r"70000 .*fp16.*65280"):
            round_scales(torch.tensor([scale]))
    with pytest.raises(ValueError, match="not finite"):
        choose_qparams(torch.tensor([[1.0, float("nan")]]), QuantScheme(4, -1))


def test_tiny_weights_get_a_scale_above_zero() -> None:
    weight = torch.full((1, 32), 1e-12)
    result = rtn(weight, QuantScheme(4, 32))
    assert float(result.scales[0, 0].abs()) == MIN_SCALE
    assert torch.equal(result.dequantize(), torch.zeros(1, 32))


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(2, 8),
    width=st.sampled_from([-1, 8, 16, 32]),
    symmetric=st.booleans(),
    seed=st.integers(0, 10_000),
    spread=st.sampled_from([1e-3, 1.0, 100.0]),
)
def test_error_is_at_most_half_a_step(
    bits: int, width: int, symmetric: bool, seed: int, spread: float
) -> None:
    weight = random_weight(seed=seed) * spread
    scheme = QuantScheme(bits, width, symmetric)
    result = rtn(weight, scheme, signed=False)
    error = (weight - result.dequantize()).abs()
    step = result.scales[:, result.column_groups().long()]
    # Rounding the scale, to bf16 and to fp16's subnormals, can push the outermost weight past the
    # grid by its relative error times the levels; an asymmetric zero point adds half a step there.
    rounding = 2.0**-8 + 2.0**-25 / step
    limit = 0.5 + scheme.max_level * rounding + (0.0 if symmetric else 0.5)
    assert bool((error / step <= limit + 1e-5).all())


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 7), width=st.sampled_from([-1, 8, 32]), seed=st.integers(0, 10_000))
def test_signed_error_is_half_a_step_but_for_one_clamped_end(
    bits: int, width: int, seed: int
) -> None:
    weight, scheme = random_weight(seed=seed), QuantScheme(bits, width)
    result = rtn(weight, scheme, signed=True)
    levels = weight / result.scales[:, result.column_groups().long()] + scheme.midpoint
    off = (levels - result.integers).abs()
    clamped = levels > scheme.max_level
    slack = scheme.max_level * 2.0**-8  # the scale's own rounding
    assert bool((off[~clamped] <= 0.5 + slack).all())
    assert bool((result.integers[clamped] == scheme.max_level).all())
    # Nothing is further out than as many levels as the longer end has.
    assert bool((off[clamped] <= 1 + slack).all())
    largest = weight.reshape(len(weight), *result.scales.shape[1:], -1).abs().amax(dim=-1)
    assert torch.equal(result.scales.abs(), round_scales(largest / scheme.midpoint))


def test_rounding_takes_either_sign_for_weights_alone_below_8_bits() -> None:
    weight = random_weight()
    cases = {
        QuantScheme(4, 32): True,
        QuantScheme(3, 32): True,
        QuantScheme(8, 32): False,
        QuantScheme(4, 32, activations="dynamic"): False,
        QuantScheme(4, 32, symmetric=False): False,
    }
    for scheme, expected in cases.items():
        assert may_be_signed(scheme) == expected
        assert bool((rtn(weight, scheme).scales < 0).any()) == expected
        assert not bool((rtn(weight, scheme, signed=False).scales < 0).any())


def test_signed_scales_cost_less_where_one_weight_stands_out() -> None:
    weight = random_weight(64, 128)
    weight[:, 5] = 8.0
    errors = [
        float((weight - rtn(weight, QuantScheme(3, 128), signed=s).dequantize()).square().mean())
        for s in (True, False)
    ]
    assert errors[0] < 0.8 * errors[1]


def test_more_bits_err_less() -> None:
    weight = random_weight(32, 256)
    errors = [
        float((weight - rtn(weight, QuantScheme(b, 64)).dequantize()).square().mean())
        for b in range(2, 9)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 100 * errors[-1]


def test_smaller_groups_err_less() -> None:
    weight = random_weight(32, 256)
    errors = [
        float((weight - rtn(weight, QuantScheme(4, g)).dequantize()).square().mean())
        for g in (-1, 128, 32)
    ]
    assert errors == sorted(errors, reverse=True)


def test_quantizing_the_dequantized_changes_nothing() -> None:
    scheme = QuantScheme(4, 32)
    first = rtn(random_weight(), scheme)
    again = quantize(first.dequantize(), first.scales, first.zero_points, scheme)
    assert torch.equal(again, first.integers)


def test_group_index_gathers_scales() -> None:
    plain = rtn(random_weight(), QuantScheme(4, 32))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    shuffled = dequantize(
        plain.integers[:, order],
        plain.scales,
        plain.zero_points,
        group_index=plain.column_groups()[order],
    )
    assert torch.equal(shuffled, plain.dequantize()[:, order])


def test_bf16_result_is_rounded_once() -> None:
    result = rtn(random_weight(), QuantScheme(8, 32))
    assert torch.equal(result.dequantize(torch.bfloat16), result.dequantize().bfloat16())


def test_equals_notices_every_part() -> None:
    a = rtn(random_weight(), QuantScheme(4, 32))
    b = rtn(random_weight(), QuantScheme(4, 32))
    assert a.equals(b)
    b.integers[0, 0] ^= 1
    assert not a.equals(b)
