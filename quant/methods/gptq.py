"""GPTQ: quantize a matrix column by column; later columns compensate the errors of earlier ones.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv 2210.17323, section 4 and algorithm 1. Differences from the paper:

- Corrections come from the Cholesky factor of the Hessian, not of its inverse. Both give the same
  integers (Chen et al., "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane
  Algorithm", arXiv 2507.18553), and nothing has to be inverted.
- Columns are solved in the order of falling Hessian diagonal (act-order) on scales that are fixed
  beforehand from the original groups (static groups). The order thus leaves no trace in the
  result, and inference needs no gather.
- Scales are searched beforehand (`scale_search.py`).
- The grid may be any that has fixed scales (`fitted_grid.py`): integers, or a table of levels.
- Weights may be held at zero by a mask (`masks.py`), which SparseGPT's score chooses on the way.
  The comparison with rounding is under the same mask.
- Dead columns, whose input is zero in all samples, are rounded; the paper's code sets them to zero.
- Rows on which plain rounding has a smaller error under the same Hessian keep the rounded integers.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ...common.validation import check_value
from ..compressed_weight import CompressedWeight
from ..recipe.mask import MaskRule
from ..recipe.ranges import BlockSize
from .blas import transposed_product
from .grids.fitted_grid import Fits, FittedGrid
from .hessian.cholesky import Factor, Precision, damping_fractions
from .hessian.prepared_hessian import PreparedHessian, prepare_hessian
from .layer_error import row_energy
from .masks import SolverMask, choose_zeros, hold_zeros

Kind = TypeVar("Kind", bound=CompressedWeight)

CHUNK_ELEMENTS = 2**23
"""Weights per chunk when errors are measured; bounds temporary memory (32 MiB in float32)."""

PANEL = 1024
"""Columns that take the corrections of all solved columns from one matrix product.

Wide products use the cores better than those of one block of 128 columns. Within a panel, blocks
take the corrections of the panel's own columns."""

_TIE = 1e-5  # relative; a smaller difference between two errors is noise of float32 sums


@dataclass(frozen=True)
class SolveStats:
    """Errors of a quantized matrix and the decisions taken on the way.

    Errors are `sum_n e_n H e_n'` with `e_n` the difference of row n from the original and H
    the undamped Hessian, relative to the same form of the original rows. `error` and `rtn_error`
    are measured before any row falls back to rounding.
    """

    error: float
    """Of GPTQ."""
    rtn_error: float
    """Of rounding to nearest on the same grid."""
    final_error: float
    """Of the returned weight, after fallback."""
    damp_percent: float | None
    """Damping, as a fraction of the mean Hessian diagonal; None if no factor was found."""
    precision: Precision
    """Precision in which the factor was found (or last tried)."""
    fallback_rows: int
    """Rows that fell back to plain rounding because its error was smaller."""
    dead_columns: int
    """Input features that are zero in all calibration samples."""
    fallback: str | None
    """Why the whole layer fell back to rounding, or None."""


@dataclass(frozen=True)
class GPTQResult(SolveStats, Generic[Kind]):
    """A quantized matrix with its errors."""

    weight: Kind

    @property
    def stats(self) -> SolveStats:
        """The same without the weight."""
        return SolveStats(**{f.name: getattr(self, f.name) for f in fields(SolveStats)})


def gptq(
    weight: Tensor,
    hessian: Tensor,
    scheme: Fits[Kind],
    *,
    damp_percent: float = 0.01,
    act_order: bool = True,
    block_size: int = 128,
    scale_search: bool = True,
    mask: MaskRule | None = None,
) -> GPTQResult[Kind]:
    """Quantize `weight` so that its outputs on the calibration inputs change least.

    Args:
        weight: `[N, K]`, any float dtype.
        hessian: `[K, K]`, `X' X` of the layer's inputs up to a positive factor.
        scheme: the grid.
        damp_percent: fraction of the mean diagonal that is added to the diagonal; the first rung
            of `damping_fractions`.
        act_order: solve columns in the order of falling diagonal; the result is not reordered.
        block_size: columns per lazy batch update; changes speed and the rounding of sums only.
        scale_search: shrink scales where that lowers the rounding error, see `search_scales`.
        mask: hold weights at zero, see `masks.py`. A pattern N:M with the score "sparsegpt" needs
            its columns next to each other: no `act_order`, and a multiple of M as `block_size`.

    Raises:
        ValueError: shapes do not match, a parameter is out of range, or the Hessian is not finite.
    """
    prepared = prepare_hessian(hessian, damp_percent=damp_percent, act_order=act_order)
    return gptq_prepared(
        weight, prepared, scheme, block_size=block_size, scale_search=scale_search, mask=mask
    )


def gptq_prepared(
    weight: Tensor,
    hessian: PreparedHessian,
    scheme: Fits[Kind],
    *,
    block_size: int = 128,
    scale_search: bool = True,
    fused_range: float | None = None,
    mask: MaskRule | None = None,
) -> GPTQResult[Kind]:
    """Quantize as `gptq` does, with a Hessian that several layers can share.

    Args:
        weight: see `gptq`.
        hessian: see `prepare_hessian`.
        scheme: see `gptq`.
        block_size: see `gptq`.
        scale_search: see `gptq`.
        fused_range: see `GridScheme.fit_for_solver`.
        mask: see `gptq`.

    Raises:
        ValueError: shapes do not match, or a parameter is out of range.
    """
    columns = weight.shape[1]
    if tuple(hessian.matrix.shape) != (columns, columns):
        raise ValueError(
            f"the Hessian is {tuple(hessian.matrix.shape)}; a weight of {columns} columns needs "
            f"({columns}, {columns})"
        )
    check_value(BlockSize, block_size, "block_size")
    original = weight.float()
    zeros = None if mask is None else choose_zeros(original, mask, hessian.matrix.diagonal())
    # The grid is fixed before any column moves. Scales taken from a group when it is reached, as
    # in the paper, would follow corrected weights, but need groups to be solved one after another.
    grid = scheme.fit_for_solver(
        hold_zeros(original, zeros), search=scale_search, fused_range=fused_range
    )
    tiny = torch.finfo(torch.float32).tiny
    factor, order, dead_columns = hessian.factor, hessian.order, int(hessian.dead.sum())
    if factor is None:
        rounded = grid.nearest(hold_zeros(original, zeros))
        difference = original - grid.values(rounded, slice(None))
        rtn_rows = row_energy(difference, hessian.matrix)
        energy = row_energy(original, hessian.matrix).sum().clamp_min(tiny)
        error = float(rtn_rows.sum() / energy)
        weight_of_rounded = grid.compressed(rounded)
        return _fall_back(weight_of_rounded, error, hessian.damp_percent, dead_columns)
    solver_mask = None
    if mask is not None and zeros is not None:
        solver_mask = SolverMask(zeros, order, mask, block_size)
    solved, gptq_rows = _solve(original, factor, order, grid, block_size, solver_mask)
    if solver_mask is not None:
        zeros = solver_mask.original_order()
    rounded = grid.nearest(hold_zeros(original, zeros))
    rtn_rows = _measure_rows(original, (grid, rounded), order, factor.energies)
    energy = _measure_rows(original, None, order, factor.energies).sum().clamp_min(tiny)
    # GPTQ is greedy: where a row's corrections exceed the grid and are clamped, the error can end
    # above that of rounding. Written so that NaN counts as worse.
    worse = ~(gptq_rows <= rtn_rows * (1 + _TIE))
    indices = torch.where(worse[:, None], rounded, solved)
    final_rows = torch.where(worse, rtn_rows, gptq_rows)
    return GPTQResult(
        weight=grid.compressed(indices),
        error=float(gptq_rows.sum() / energy),
        rtn_error=float(rtn_rows.sum() / energy),
        final_error=float(final_rows.sum() / energy),
        damp_percent=factor.fraction,
        precision=factor.precision,
        fallback_rows=int(worse.sum()),
        dead_columns=dead_columns,
        fallback=None,
    )


def _fall_back(
    rounded: Kind, error: float, damp_percent: float, dead_columns: int
) -> GPTQResult[Kind]:
    """Return the rounded layer, because its Hessian has no factor."""
    largest = damping_fractions(damp_percent)[-1]
    return GPTQResult(
        weight=rounded,
        error=error,
        rtn_error=error,
        final_error=error,
        damp_percent=None,
        precision="float64",
        fallback_rows=0,
        dead_columns=dead_columns,
        fallback=f"no Cholesky factor up to damping {largest:g}, rounded instead",
    )


def _solve(
    weight: Tensor,
    factor: Factor,
    order: Tensor,
    grid: FittedGrid[Any],
    block_size: int,
    mask: SolverMask | None = None,
) -> tuple[Tensor, Tensor]:
    """Solve the columns from the last one of `order` to the first.

    With `H = L L'`, the output error of a row with weight error e is `|e L|^2`. Its term for
    column i is `(e_i L_ii + c_i)^2` with `c_i = sum_{k > i} e_k L_ki`: only columns after i,
    which are solved already, and i itself contribute. The term is least for the grid value nearest
    to `w_i + c_i / L_ii`. This is Babai's nearest plane, and equals the paper's update.

    The sums c are added lazily ("Step 2: Lazy Batch-Updates" of section 4), on three levels: one
    product per panel over all solved columns, one per block over the solved columns of the panel,
    and a rank-1 update per column inside the block.

    A mask holds values at zero; "sparsegpt" chooses them when it reaches a block or pattern.

    Returns:
        uint8 `[N, K]` in the original order, and each row's error under the undamped Hessian,
        float32 `[N]`.
    """
    # Transposed: a column of the weight is a contiguous row here, which each step reads and writes.
    # Rows that are solved hold their errors e instead of weights.
    W = weight.t()[order].contiguous()
    L = factor.lower
    diagonals = L.diagonal().unbind()
    columns, rows = W.shape
    rounder = grid.columns(order)
    row_errors = torch.zeros(rows, device=W.device)
    panel = max(PANEL, block_size)
    for stop in range(columns, 0, -panel):
        start = max(stop - panel, 0)
        # c of the panel's columns, from all columns solved before the panel
        panel_correction = transposed_product(L[stop:, start:stop], W[stop:])
        for end in range(stop, start, -block_size):
            begin = max(end - block_size, start)
            correction = panel_correction[begin - start : end - start]
            correction += transposed_product(L[end:stop, begin:end], W[end:stop])
            for i in range(end - 1, begin - 1, -1):
                row, diagonal = W[i], diagonals[i]
                target = row + correction[i - begin] / diagonal
                held = target
                if mask is not None:
                    if run := mask.run(end, i):
                        next_ = slice(max(i + 1 - run, begin), i + 1)
                        pending = correction[next_.start - begin : i + 1 - begin]
                        mask.choose(next_.start, _zero_terms(W[next_], L[next_, next_], pending))
                    held = target.masked_fill(mask.zeros[i], 0)
                value = rounder.round(i, held)
                row_errors += (target - value).mul_(diagonal).square_()
                row.sub_(value)
                correction[: i - begin].addr_(L[i, begin:i], row)
    del W
    solved = torch.empty_like(rounder.indices)
    solved[order] = rounder.indices
    solved = solved.t().contiguous()
    # The terms add up to the error under the damped Hessian: subtract the part of the damping.
    candidate = grid, solved
    added = _measure_rows(weight, candidate, order, lambda rows: rows.square_() @ factor.damping)
    return solved, (row_errors - added).clamp_min(0)


def _zero_terms(weight: Tensor, lower: Tensor, correction: Tensor) -> Tensor:
    """Compute the terms of the error, see `_solve`, that zeros of the next columns would have.

    The targets of all these columns are those at which their terms would vanish together: column i
    is corrected for those after it that are solved already, and for the others as well.

    Args:
        weight: float32 `[n, N]`, the columns that are solved next.
        lower: float32 `[n, n]`, their block of the factor.
        correction: float32 `[n, N]`, c of these columns, from the solved ones.

    Returns:
        float32 `[n, N]`.
    """
    shift: Tensor = torch.linalg.solve_triangular(lower.t(), correction, upper=True)
    return shift.add_(weight).mul_(lower.diagonal()[:, None]).square_()


def _measure_rows(
    weight: Tensor,
    candidate: tuple[FittedGrid[Any], Tensor] | None,
    order: Tensor,
    measure: Callable[[Tensor], Tensor],
) -> Tensor:
    """Apply `measure` to the rows of the weight, or of its error with a candidate, in chunks.

    Args:
        weight: float32 `[N, K]`.
        candidate: a grid, and the indices `[N, K]` on it; None measures the weight itself.
        order: int64 `[K]`, order of the columns that `measure` gets.
        measure: maps float32 `[n, K]`, which it may overwrite, to `[n]`.

    Returns:
        `[N]`.
    """
    step = max(1, CHUNK_ELEMENTS // weight.shape[1])
    results = []
    for begin in range(0, len(weight), step):
        chunk = slice(begin, begin + step)
        rows = weight[chunk]
        if candidate is not None:
            grid, indices = candidate
            rows = rows - grid.values(indices[chunk], chunk)
        results.append(measure(rows[:, order]))
    return torch.cat(results)
