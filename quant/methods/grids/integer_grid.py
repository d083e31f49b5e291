"""Integers on a uniform grid as rounding and the solvers use them, see `fitted_grid.py`.

Letters: N = out_features, K = in_features, G = groups per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...recipe.scheme import QuantScheme
from ..affine import QuantizedWeight, choose_qparams, dequantize, quantize
from ..scale_search import clip_scales, search_scales


@dataclass(frozen=True)
class IntegerGrid:
    """Scales and zero points of every group."""

    scales: Tensor
    """float32 `[N, G]`."""
    zero_points: Tensor
    """uint8 `[N, G]`."""
    scheme: QuantScheme

    def nearest(self, weight: Tensor) -> Tensor:
        """See `FittedGrid.nearest`."""
        return quantize(weight, self.scales, self.zero_points, self.scheme)

    def values(self, indices: Tensor, rows: slice) -> Tensor:
        """See `FittedGrid.values`."""
        return dequantize(indices, self.scales[rows], self.zero_points[rows])

    def columns(self, order: Tensor) -> IntegerColumns:
        """See `FittedGrid.columns`."""
        return IntegerColumns(self, order)

    def compressed(self, indices: Tensor) -> QuantizedWeight:
        """See `FittedGrid.compressed`."""
        return QuantizedWeight(indices, self.scales, self.zero_points, self.scheme)


class IntegerColumns:
    """See `ColumnRounder`."""

    def __init__(self, grid: IntegerGrid, order: Tensor) -> None:
        self._scales, self._zeros = grid.scales.t().contiguous(), grid.zero_points.t().float()
        self._groups = (order // grid.scheme.width(len(order))).tolist()
        self._top = grid.scheme.max_level
        shape = len(order), len(grid.scales)
        self.indices = torch.empty(shape, dtype=torch.uint8, device=order.device)

    def round(self, column: int, target: Tensor) -> Tensor:
        """See `ColumnRounder.round`."""
        group = self._groups[column]
        s, z = self._scales[group], self._zeros[group]
        q = (target / s).round_().add_(z).clamp_(0, self._top)
        self.indices[column] = q
        return q.sub_(z).mul_(s)


def fit_for_rounding(
    weight: Tensor,
    scheme: QuantScheme,
    hessian: Tensor | None = None,
    *,
    signed: bool | None = None,
) -> IntegerGrid:
    """Choose scales from each group's range; with a Hessian, clip it where outputs err less.

    Args:
        weight: `[N, K]`, any float dtype.
        scheme: the grid.
        hessian: `[K, K]` or None, see `clip_scales`.
        signed: whether symmetric scales may be negative; None decides by `may_be_signed`.

    Raises:
        ValueError: see `choose_qparams`.
    """
    if signed is None:
        signed = may_be_signed(scheme)
    scales, zero_points = choose_qparams(weight, scheme, signed=signed)
    if hessian is not None:
        scales = clip_scales(weight.float(), scales, zero_points, hessian, scheme)
    return IntegerGrid(scales, zero_points, scheme)


def fit_for_solver(weight: Tensor, scheme: QuantScheme, *, search: bool = True) -> IntegerGrid:
    """Choose scales of positive sign from each group's range, see `search_scales`.

    Raises:
        ValueError: see `choose_qparams`.
    """
    original = weight.float()
    scales, zero_points = choose_qparams(original, scheme)
    if search:
        scales = search_scales(original, scales, zero_points, scheme)
    return IntegerGrid(scales, zero_points, scheme)


def may_be_signed(scheme: QuantScheme) -> bool:
    """Whether negative scales are useful and safe: weight-only schemes below 8 bits.

    At 8 bits one more level on one side is negligible. Kernels for int8 activations requantize the
    scales of a row's groups relative to their maximum, not to their largest magnitude.
    """
    return scheme.symmetric and scheme.bits < 8 and scheme.activations == "none"
