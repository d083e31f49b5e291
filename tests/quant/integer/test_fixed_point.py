"""Fixed-point multipliers: known values, and products within half a unit of the real ones."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.quant.integer.fixed_point import fixed_point, multiply


def test_known_factors() -> None:
    multipliers, shifts = fixed_point(np.array([0.5, 0.25, 0.75, 1.0, 3.0, 0.3]))
    assert multipliers.tolist() == [1 << 30, 1 << 30, 3 << 29, 1 << 30, 3 << 29, 1288490189]
    assert shifts.tolist() == [0, 1, 0, -1, -2, 1]


def test_a_mantissa_that_rounds_up_to_one_stays_in_range() -> None:
    multipliers, shifts = fixed_point(np.array([1 - 2.0**-40]))
    assert (multipliers.tolist(), shifts.tolist()) == ([1 << 30], [-1])


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf"), 2.0**-70, 2.0**40])
def test_unusable_factors_are_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="the scales are broken"):
        fixed_point(np.array([factor]))


def test_halves_are_rounded_away_from_zero() -> None:
    multipliers, shifts = fixed_point(np.full(6, 0.25))
    assert multiply(np.array([2, -2, 6, -6, 1, -1]), multipliers, shifts).tolist() == [
        *[1, -1, 2, -2, 1, -1]  # 0.25: the first rounding, to 0.5, rounds away as well
    ]


@given(st.integers(-(2**31) + 1, 2**31 - 1), st.floats(2.0**-20, 0.99))
def test_products_are_within_one_unit(value: int, factor: float) -> None:
    multipliers, shifts = fixed_point(np.array([factor]))
    product = int(multiply(np.array([value]), multipliers, shifts)[0])
    # Two roundings of at most a half each, and the rounding of the factor to 31 bits.
    assert abs(product - Fraction(factor) * value) <= Fraction(1, 2) + Fraction(3, 4)


def test_sums_beyond_32_bits_are_refused() -> None:
    multipliers, shifts = fixed_point(np.array([4.0]))
    with pytest.raises(OverflowError, match="an accumulator reaches 2147483648, which does not fi"):
        multiply(np.array([2**31]), multipliers, shifts)
    with pytest.raises(OverflowError, match="that is shifted left reaches 8589934592"):
        multiply(np.array([2**30]), multipliers, shifts)
