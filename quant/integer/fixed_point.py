"""Fixed-point multipliers: products with a real number by an integer product and a shift.

"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(arXiv 1712.05877, section 2.2): `M = 2**-n * M0`, where M0 is a number from 0.5 to 1 in fixed
point, an int32 in `[2**30, 2**31)` that counts units of `2**-31`. A product rounds twice, as on
hardware with a doubling high multiplication: after M0 and after the shift, both times half away
from zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
"""int64 arrays hold all integers here, those of 32 bits too: NumPy wraps int32 silently."""
Reals = NDArray[np.float64]

FRACTION_BITS = 31
"""Of M0."""
LARGEST_SHIFT = 62
"""Shifts beyond it would leave int64."""
INT32 = np.iinfo(np.int32)


def fixed_point(factors: Reals) -> tuple[Integers, Integers]:
    """Write positive factors as `M0 * 2**(-31 - n)`.

    Args:
        factors: float64, positive.

    Returns:
        M0, in `[2**30, 2**31)`, and n, of the same shape; n is negative for factors from 1.

    Raises:
        ValueError: a factor is not finite and positive, or its shift is not -31 to 62.
    """
    if not bool((np.isfinite(factors) & (factors > 0)).all()):
        raise ValueError("a multiplier is not finite and positive; the scales are broken")
    mantissas, exponents = np.frexp(factors)
    multipliers = np.rint(np.ldexp(mantissas, FRACTION_BITS)).astype(np.int64)
    shifts = -exponents.astype(np.int64)
    overflows = multipliers == 1 << FRACTION_BITS  # a mantissa next to 1
    multipliers[overflows] >>= 1
    shifts[overflows] -= 1
    if bool((shifts > LARGEST_SHIFT).any() or (shifts < -FRACTION_BITS).any()):
        raise ValueError(
            f"a multiplier of {float(factors.min()):g} to {float(factors.max()):g} needs a shift "
            f"out of -{FRACTION_BITS} to {LARGEST_SHIFT}; the scales are broken"
        )
    return multipliers, shifts


def multiply(values: Integers, multipliers: Integers, shifts: Integers) -> Integers:
    """Multiply integers by fixed-point numbers, see `fixed_point`.

    Args:
        values: `[..., N]`, in int32's range.
        multipliers: `[N]`, M0.
        shifts: `[N]`, n.

    Returns:
        `[..., N]`.

    Raises:
        OverflowError: a value leaves the range of int32, before or after a left shift.
    """
    check_int32(values, "an accumulator")
    if bool((shifts < 0).any()):
        values = values << np.maximum(-shifts, 0)
        check_int32(values, "an accumulator that is shifted left")
    high = _rounding_shift(values * multipliers, np.full_like(shifts, FRACTION_BITS))
    return _rounding_shift(high, np.maximum(shifts, 0))


def check_int32(values: Integers, subject: str) -> None:
    """Refuse integers that 32 bits do not hold.

    Raises:
        OverflowError: there is one.
    """
    largest = int(np.abs(values).max(initial=0))
    if largest > INT32.max:
        raise OverflowError(f"{subject} reaches {largest}, which does not fit int32")


def _rounding_shift(values: Integers, shifts: Integers) -> Integers:
    """Divide by `2**shift`, rounding half away from zero."""
    half = (np.int64(1) << shifts) >> 1
    magnitudes: Integers = (np.abs(values) + half) >> shifts
    return np.sign(values) * magnitudes
