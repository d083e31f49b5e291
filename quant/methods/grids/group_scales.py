"""Forms in which the scales of groups are stored, and the scales that a group's range gives.

A scale is stored as a number of bf16 and fp16 ("float"), as E4M3 under one float32 scale of the
whole matrix ("e4m3", NVFP4), or as a power of two ("e8m0", MXFP4). The effective scale is the
stored one over `divisor`, the scale of the matrix; 1 without one. compressed-tensors computes the
same: `calculate_qparams` and `generate_gparam` (`quantization/utils/helpers.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...recipe.grids import E4M3, Grid, ScaleForm
from ..affine import round_scales
from .levels import round_to_format

LEAST_E4M3 = 2.0**-9
"""Smallest positive E4M3 number (subnormal)."""
E8M0_BIAS = 127
LEAST_EXPONENT, LARGEST_EXPONENT = -126, 127
"""Exponents of stored powers of two: 2**-127 is no normal float32 number, and code 255 is NaN."""


@dataclass(frozen=True)
class StoredScales:
    """How scales are stored."""

    from_range: Callable[[Tensor, Grid], Tensor]
    """Maps largest magnitudes, in units of 1 / divisor, to scales before rounding."""
    round: Callable[[Tensor], Tensor]
    """Rounds positive float32 scales to those that can be stored."""
    has_divisor: bool = False


def divisor_of(largest: float, grid: Grid) -> float:
    """Choose the scale of a whole matrix: its largest weight gets the largest stored scale.

    Args:
        largest: largest magnitude of the matrix, or of those that engines fuse with it.
        grid: one whose scales have a divisor.

    Returns:
        A float32 number; 1 for a matrix of zeros.
    """
    if largest == 0:
        return 1.0
    # As compressed-tensors: the product first, then the division in float32.
    return float(torch.tensor(E4M3.largest * grid.largest) / torch.tensor(largest))


def _proportional(largest: Tensor, grid: Grid) -> Tensor:
    return largest / grid.largest


def _power_of_two(largest: Tensor, grid: Grid) -> Tensor:
    """Return the power of two with which the largest weight is within the rounding of the grid.

    The exponent is that of the largest weight minus that of the largest level. It is one more if
    the weight would be rounded to the next power of two: from 1.75 times a power upwards for E2M1.
    """
    assert grid.format is not None
    fraction = 1.0 - 2.0 ** -(grid.format.mantissa + 2)
    mantissa, exponent = torch.frexp(largest)  # the mantissa is from 0.5 to 1
    exponent = exponent - 1 + (mantissa >= fraction).int()
    top = int(torch.frexp(torch.tensor(grid.largest)).exponent) - 1
    return torch.ldexp(torch.ones_like(largest), exponent - top)


def _round_e4m3(scales: Tensor) -> Tensor:
    return round_to_format(scales, E4M3).clamp_min(LEAST_E4M3)


def _round_e8m0(scales: Tensor) -> Tensor:
    exponents = torch.frexp(scales).exponent - 1
    limited = exponents.clamp(LEAST_EXPONENT, LARGEST_EXPONENT)
    return torch.ldexp(torch.ones_like(scales), limited)


SCALES: Mapping[ScaleForm, StoredScales] = {
    "float": StoredScales(_proportional, round_scales),
    "e4m3": StoredScales(_proportional, _round_e4m3, has_divisor=True),
    "e8m0": StoredScales(_power_of_two, _round_e8m0),
}
