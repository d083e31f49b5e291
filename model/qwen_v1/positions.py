"""Learned positions of a square grid, interpolated to a grid of another size."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor


def interpolate_positions(table: Tensor, side: int) -> Tensor:
    """Interpolate a table of positions, in float32 and rounded to its dtype.

    Args:
        table: `[n * n, channels]`, row by row.
        side: rows and columns of the new grid; with n the table is returned.

    Returns:
        `[side * side, channels]`, bicubic without aligned corners.
    """
    stored = math.isqrt(table.shape[0])
    if stored == side:
        return table
    image = table.float().T.reshape(1, -1, stored, stored)
    scaled = F.interpolate(image, size=(side, side), mode="bicubic", align_corners=False)
    return scaled.reshape(table.shape[1], -1).T.to(table.dtype)
