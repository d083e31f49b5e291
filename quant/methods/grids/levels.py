"""Round numbers to the levels of a grid, in plain torch; see `recipe/grids.py`.

Rounding is to the nearest level; halfway between two levels to the one with the even code, which
for float formats is round-to-nearest-even. Numbers beyond the last level saturate. NaN stays NaN
in `round_to_levels`; `level_index` must not get it.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from ...recipe.grids import FloatFormat, Grid

_FRACTION = 23  # bits of the fraction of float32
_BIAS = 127


def round_to_levels(x: Tensor, grid: Grid) -> Tensor:
    """Round to the nearest levels.

    Args:
        x: float32, any shape; infinities saturate.
        grid: the levels.

    Returns:
        float32, same shape.
    """
    if grid.format is not None:
        return round_to_format(x, grid.format)
    values = level_values(_count_above(x, _bounds(grid)), grid)
    return torch.where(x.isnan(), x, values)


def level_index(values: Tensor, grid: Grid) -> Tensor:
    """Return the position of each level in the table.

    Args:
        values: float32 levels, from `round_to_levels`.
        grid: the levels.

    Returns:
        uint8, same shape.
    """
    if grid.format is None:
        return _count_above(values, _bounds(grid))
    codes = _magnitude_codes(values.abs(), grid.format)
    return (grid.zero + torch.where(values < 0, -codes, codes)).to(torch.uint8)


def level_values(indices: Tensor, grid: Grid) -> Tensor:
    """Look up levels by their position, uint8; float32 of the same shape."""
    table = _table(grid, indices.device)
    return table.index_select(0, indices.reshape(-1).int()).reshape(indices.shape)


def code_levels(grid: Grid, bits: int) -> Tensor:
    """Return the levels by stored code, float32 `[2**bits]`; NaN for codes that are none."""
    levels = torch.full((1 << bits,), torch.nan)
    levels[list(grid.codes)] = torch.tensor(grid.levels)
    return levels


def index_to_code(indices: Tensor, grid: Grid) -> Tensor:
    """Convert positions to stored codes, uint8 of the same shape."""
    table = torch.tensor(grid.codes, dtype=torch.uint8, device=indices.device)
    return table.index_select(0, indices.reshape(-1).int()).reshape(indices.shape)


def code_to_index(codes: Tensor, grid: Grid, name: str) -> Tensor:
    """Convert stored codes to positions; a negative zero of a float format becomes zero.

    Args:
        codes: uint8.
        grid: the levels.
        name: of the tensor, for messages.

    Returns:
        uint8, same shape.

    Raises:
        ValueError: a code is not a level, for example NaN.
    """
    positions = dict(zip(grid.codes, range(len(grid.codes)), strict=True))
    if grid.format is not None:
        positions[1 << (grid.bits - 1)] = positions[0]
    table = torch.tensor([positions.get(code, -1) for code in range(256)], dtype=torch.int16)
    found = table.to(codes.device).index_select(0, codes.reshape(-1).int())
    if bool((found < 0).any()):
        raise ValueError(
            f"{name} has the code {int(codes.reshape(-1)[found < 0][0])}, which is no number of "
            f"the grid {grid.name}; the file is damaged"
        )
    return found.to(torch.uint8).reshape(codes.shape)


def round_to_format(x: Tensor, format: FloatFormat) -> Tensor:
    """Round float32 numbers to those of a small float format, ties to even; they saturate."""
    # The exponent bits alone are the largest power of two that is not above |x|: a step of the
    # format is that power times 2**-mantissa, and dividing by it is exact.
    step = (x.view(torch.int32) & 0x7F800000).view(torch.float32)
    step = step.clamp_(2.0**format.least_exponent, format.largest).mul_(2.0**-format.mantissa)
    rounded = (x / step).round_().mul_(step)
    return rounded.clamp_(-format.largest, format.largest)


def _magnitude_codes(magnitudes: Tensor, format: FloatFormat) -> Tensor:
    """Return exponent and fraction of magnitudes of the format as one number, int32."""
    bits = magnitudes.view(torch.int32) >> (_FRACTION - format.mantissa)
    normal = bits - ((format.least_exponent + _BIAS - 1) << format.mantissa)
    subnormal = magnitudes * 2.0 ** (format.mantissa - format.least_exponent)
    return torch.where(magnitudes >= 2.0**format.least_exponent, normal, subnormal.int())


def _count_above(x: Tensor, bounds: tuple[float, ...]) -> Tensor:
    """Count the bounds below each number, uint8; NaN is above none."""
    count = torch.zeros(x.shape, dtype=torch.uint8, device=x.device)
    for bound in bounds:
        count += x > bound
    return count


@cache
def _bounds(grid: Grid) -> tuple[float, ...]:
    """Compute the numbers above which the next level is nearer, or as near and of even code."""
    bounds = []
    levels = torch.tensor(grid.levels, dtype=torch.float64)
    for middle, code in zip(((levels[1:] + levels[:-1]) / 2).float(), grid.codes[1:], strict=True):
        least = torch.tensor(-math.inf)
        bounds.append(float(torch.nextafter(middle, least) if code % 2 == 0 else middle))
    return tuple(bounds)


@cache
def _table(grid: Grid, device: torch.device) -> Tensor:
    return torch.tensor(grid.levels, dtype=torch.float32, device=device)
