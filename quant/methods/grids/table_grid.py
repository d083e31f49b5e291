"""Levels of a table as rounding and the solvers use them, see `fitted_grid.py`.

Every group has a scale out of a few candidates: factors times the scale that maps the group's
largest weight to the largest level, rounded to the form in which scales are stored. Without a
search the factors are the grid's `choices`; a search takes those of the grid, or of integers, and
the losses of `scale_search.py`.

Letters: N = out_features, K = in_features, R and G = rows and columns of the scales, r = rows of a
block, W = columns of a group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...recipe.scheme import TableScheme
from ..affine import check_finite
from ..scale_search import (
    CLIPPING_RATIOS,
    EXPONENT,
    SOLVER_RATIOS,
    group_blocks,
)
from .group_scales import SCALES, divisor_of
from .levels import level_index, round_to_levels
from .table_weight import TableWeight, effective_scales, row_chunks, scaled_levels

BlockLoss = Callable[[Tensor], Tensor]
"""Maps errors `[R, r, G, W]`, which it may overwrite, to losses `[R, G]`."""


@dataclass(frozen=True)
class TableGrid:
    """The scales of a weight."""

    scales: Tensor
    """float32 `[R, G]`, as they are stored."""
    divisor: Tensor | None
    """See `TableWeight.divisor`."""
    scheme: TableScheme
    rows: int
    """N."""

    def nearest(self, weight: Tensor) -> Tensor:
        """See `FittedGrid.nearest`."""
        table, scales = self.scheme.table, self._row_scales()
        indices = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
        for rows in row_chunks(*weight.shape):
            grouped = weight[rows].float().reshape(*scales[rows].shape, -1)
            levels = round_to_levels(grouped / scales[rows][..., None], table)
            indices[rows] = level_index(levels, table).reshape(indices[rows].shape)
        return indices

    def values(self, indices: Tensor, rows: slice) -> Tensor:
        """See `FittedGrid.values`."""
        return scaled_levels(indices, self._row_scales()[rows], self.scheme)

    def columns(self, order: Tensor) -> TableColumns:
        """See `FittedGrid.columns`."""
        return TableColumns(self, order)

    def compressed(self, indices: Tensor) -> TableWeight:
        """See `FittedGrid.compressed`."""
        return TableWeight(indices, self.scales, self.scheme, self.divisor)

    def _row_scales(self) -> Tensor:
        return effective_scales(self.scales, self.divisor, self.scheme, self.rows)


class TableColumns:
    """See `ColumnRounder`."""

    def __init__(self, grid: TableGrid, order: Tensor) -> None:
        self._table = grid.scheme.table
        self._scales = grid._row_scales().t().contiguous()
        self._groups = (order // grid.scheme.width(len(order))).tolist()
        shape = len(order), grid.rows
        self.indices = torch.empty(shape, dtype=torch.uint8, device=order.device)

    def round(self, column: int, target: Tensor) -> Tensor:
        """See `ColumnRounder.round`."""
        scales = self._scales[self._groups[column]]
        levels = round_to_levels(target / scales, self._table)
        self.indices[column] = level_index(levels, self._table)
        return levels * scales


def fit_for_rounding(
    weight: Tensor,
    scheme: TableScheme,
    hessian: Tensor | None = None,
    *,
    fused_range: float | None = None,
) -> TableGrid:
    """See `GridScheme.fit_for_rounding`."""
    if hessian is None:
        return _fit(weight, scheme, scheme.table.choices, _squares, fused_range)
    blocks = group_blocks(hessian.float(), scheme.groups(weight.shape[1]))

    def loss(error: Tensor) -> Tensor:
        # e H_g e' of each row and group, see `clip_scales`; summed over the rows of a block
        rows = error.flatten(0, 1).transpose(0, 1)
        energies = ((rows @ blocks) * rows).sum(dim=-1).t()
        return energies.reshape(*error.shape[:2], -1).sum(dim=1)

    return _fit(weight, scheme, scheme.table.search or CLIPPING_RATIOS, loss, fused_range)


def fit_for_solver(
    weight: Tensor, scheme: TableScheme, *, search: bool = True, fused_range: float | None = None
) -> TableGrid:
    """See `GridScheme.fit_for_solver`."""
    if not search:
        return _fit(weight, scheme, scheme.table.choices, _squares, fused_range)
    factors = scheme.table.search or SOLVER_RATIOS
    return _fit(weight, scheme, factors, _powers, fused_range)


def _squares(error: Tensor) -> Tensor:
    return error.square_().sum(dim=(1, 3))


def _powers(error: Tensor) -> Tensor:
    """The loss of `search_scales`."""
    return error.abs_().log2_().mul_(EXPONENT).exp2_().sum(dim=(1, 3))


def _fit(
    weight: Tensor,
    scheme: TableScheme,
    factors: Sequence[float],
    loss: BlockLoss,
    fused_range: float | None,
) -> TableGrid:
    """Choose the factor of each scale with the smallest loss, the first one on ties.

    Raises:
        ValueError: see `GridScheme.fit_for_rounding`.
    """
    check_finite(weight)
    form, (rows, columns) = SCALES[scheme.table.scale_form], weight.shape
    scheme.groups(columns)
    divisor = None
    if form.has_divisor:
        largest = float(weight.abs().max()) if fused_range is None else fused_range
        divisor = torch.tensor(divisor_of(largest, scheme.table), device=weight.device)
    scales = [
        _fit_chunk(weight[chunk].float(), scheme, factors, loss, divisor)
        for chunk in row_chunks(rows, columns, scheme.scale_rows)
    ]
    return TableGrid(torch.cat(scales), divisor, scheme, rows)


def _fit_chunk(
    weight: Tensor,
    scheme: TableScheme,
    factors: Sequence[float],
    loss: BlockLoss,
    divisor: Tensor | None,
) -> Tensor:
    """Choose the stored scales `[R, G]` of some rows."""
    table, form = scheme.table, SCALES[scheme.table.scale_form]
    missing = -len(weight) % scheme.scale_rows  # rows of zeros, which every scale represents
    padded = F.pad(weight, (0, 0, 0, missing))
    groups = scheme.groups(weight.shape[1])
    blocks = padded.reshape(-1, scheme.scale_rows, groups, weight.shape[1] // groups)
    largest = blocks.abs().amax(dim=(1, 3))
    base = form.from_range(largest if divisor is None else largest * divisor, table)
    base = torch.where(largest == 0, torch.ones_like(base), base)
    best = form.round(base * factors[0])
    if len(factors) == 1:
        return best
    least = torch.full_like(base, torch.inf)
    for factor in factors:
        candidate = form.round(base * factor)
        step = (candidate if divisor is None else candidate / divisor)[:, None, :, None]
        losses = loss(round_to_levels(blocks / step, table).mul_(step).sub_(blocks))
        best = torch.where(losses < least, candidate, best)
        least = torch.minimum(losses, least)
    return best
