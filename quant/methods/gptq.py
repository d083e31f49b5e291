"""GPTQ: quantize a matrix column by column and let later columns make up for earlier errors.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv 2210.17323, section 3 and algorithm 1. Differences from the paper:

- Columns are corrected from the Cholesky factor of the Hessian itself, not from that of its
  inverse: the two ways give the same integers (Chen et al., "The Geometry of LLM Quantization: GPTQ
  as Babai's Nearest Plane Algorithm", arXiv 2507.18553), and nothing is inverted.
- Columns are solved in order of falling Hessian diagonal, on scales fixed beforehand from the
  original groups, so the order leaves no trace in the result (static groups).
- Scales are searched beforehand (`scale_search.py`).
- A column that calibration never excited is rounded; the paper's code sets it to zero.
- Rows on which plain rounding does better under the same Hessian keep the rounded integers.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from ..recipe.scheme import QuantScheme
from .affine import QuantizedWeight, choose_qparams, dequantize, quantize
from .blas import transposed_product
from .cholesky import LADDER, Factor, Precision, find_factor, is_finite
from .layer_error import row_energy
from .scale_search import search_scales

# Of a weight, so that what is measured of it needs little memory beside it.
VALUES_AT_ONCE = 2**23

# Columns that are corrected by one product from all behind them: wide products are faster.
PANEL = 1024

# A row counts as worse than rounding only beyond the noise of float32 sums.
_TIE = 1e-5


@dataclass(frozen=True)
class SolveStats:
    """What it took to quantize a matrix.

    Errors are ``sum_n e_n H e_n'`` with ``e_n`` the difference of row n from the original and H
    the undamped Hessian, relative to the same form of the original rows. `error` and `rtn_error`
    are taken before any row falls back.
    """

    error: float
    rtn_error: float
    final_error: float
    """As `error`, of the weight that is returned (after fallback)."""
    damp_percent: float | None
    """Fraction of the mean diagonal that was added; None if no factor was found."""
    precision: Precision
    """Precision in which the factor was found (or last tried)."""
    fallback_rows: int
    """Rows that kept plain rounding because it was better."""
    dead_columns: int
    """Input features that calibration never excited."""
    fallback: str | None
    """Why the whole layer was rounded instead, or None."""


@dataclass(frozen=True)
class GPTQResult(SolveStats):
    """A quantized matrix and what it took to get there."""

    weight: QuantizedWeight

    @property
    def stats(self) -> SolveStats:
        """All but the weight, which may go."""
        return SolveStats(**{f.name: getattr(self, f.name) for f in fields(SolveStats)})


def gptq(
    weight: Tensor,
    hessian: Tensor,
    scheme: QuantScheme,
    *,
    damp_percent: float = 0.01,
    act_order: bool = True,
    block_size: int = 128,
    scale_search: bool = True,
) -> GPTQResult:
    """Quantize `weight` so that its outputs on the calibration inputs change least.

    Args:
        weight: ``[N, K]``, any float dtype.
        hessian: ``[K, K]``, ``X' X`` of the layer's inputs up to a positive factor.
        scheme: the grid.
        damp_percent: fraction of the mean diagonal added to it (0.01), the first rung of a ladder.
        act_order: solve columns in order of falling diagonal; the result is not reordered.
        block_size: columns whose corrections are applied to the rest at once.
        scale_search: shrink scales where that lowers the rounding error, see `search_scales`.

    Raises:
        ValueError: shapes do not fit, a parameter is out of range, or the Hessian is not finite.
    """
    _check(weight, hessian, damp_percent, block_size)
    matrix = hessian if hessian.dtype == torch.float64 else hessian.float()
    original = weight.float()
    scales, zero_points = choose_qparams(original, scheme)
    if scale_search:
        scales = search_scales(original, scales, zero_points, scheme)
    rounded = QuantizedWeight(
        quantize(original, scales, zero_points, scheme), scales, zero_points, scheme
    )
    dead = matrix.diagonal() <= 0
    # Backwards: a lower factor couples a column to those behind it, which are to be solved first.
    order = _solving_order(matrix, act_order).flip(0)
    # A dead column's row of the Hessian is zero: any positive diagonal leaves it uncoupled, and
    # the mean of the others leaves the damping alone.
    alive = matrix.diagonal()[~dead]
    missing = dead.float() * (alive.mean().float() if len(alive) else 1.0)
    tiny = torch.finfo(torch.float32).tiny
    factor = find_factor(matrix, order, missing, damp_percent)
    if factor is None:
        rtn_rows = row_energy(original - rounded.dequantize(), matrix)
        energy = row_energy(original, matrix).sum().clamp_min(tiny)
        return _given_up(rounded, float(rtn_rows.sum() / energy), damp_percent, int(dead.sum()))
    rtn_rows = _by_parts(original, rounded, order, factor.energies)
    energy = _by_parts(original, None, order, factor.energies).sum().clamp_min(tiny)
    solved, gptq_rows = _solve(original, factor, order, scales, zero_points, scheme, block_size)
    worse = ~(gptq_rows <= rtn_rows * (1 + _TIE))  # what is not a number is worse too
    integers = torch.where(worse[:, None], rounded.integers, solved)
    kept = torch.where(worse, rtn_rows, gptq_rows)
    return GPTQResult(
        weight=QuantizedWeight(integers, scales, zero_points, scheme),
        error=float(gptq_rows.sum() / energy),
        rtn_error=float(rtn_rows.sum() / energy),
        final_error=float(kept.sum() / energy),
        damp_percent=factor.fraction,
        precision=factor.precision,
        fallback_rows=int(worse.sum()),
        dead_columns=int(dead.sum()),
        fallback=None,
    )


def _given_up(
    rounded: QuantizedWeight, error: float, damp_percent: float, dead_columns: int
) -> GPTQResult:
    """Plain rounding of a whole layer, because its Hessian has no factor."""
    return GPTQResult(
        weight=rounded,
        error=error,
        rtn_error=error,
        final_error=error,
        damp_percent=None,
        precision="float64",
        fallback_rows=0,
        dead_columns=dead_columns,
        fallback=f"no Cholesky factor up to damping {damp_percent * LADDER[-1]:g}, rounded instead",
    )


def _check(weight: Tensor, hessian: Tensor, damp_percent: float, block_size: int) -> None:
    columns = weight.shape[1]
    if tuple(hessian.shape) != (columns, columns):
        raise ValueError(
            f"the Hessian is {tuple(hessian.shape)}; a weight of {columns} columns needs "
            f"({columns}, {columns})"
        )
    if not 0 < damp_percent <= 1:
        raise ValueError(f"damp_percent is {damp_percent}; it is a fraction above 0, at most 1")
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; it must be at least 1")
    if not is_finite(hessian):
        raise ValueError(
            "the Hessian is not finite: the layer's inputs overflowed during calibration; "
            "calibrate in bf16 or fp32"
        )


def _solving_order(hessian: Tensor, act_order: bool) -> Tensor:
    if act_order:
        return torch.argsort(hessian.diagonal(), descending=True, stable=True)
    return torch.arange(len(hessian), device=hessian.device)


def _solve(
    weight: Tensor,
    factor: Factor,
    order: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    scheme: QuantScheme,
    block_size: int,
) -> tuple[Tensor, Tensor]:
    """Solve the columns from the last one of `order` to the first.

    The squared output error of a row e is that of ``e L``, whose column j only later columns of e
    and e's own reach: each is rounded so that its part is least, given those before it.

    Returns:
        uint8 ``[N, K]`` in the original order, and each row's error under the undamped Hessian,
        ``[N]``: with damping it is the sum of those parts.
    """
    # Columns of the weight lie as rows here: each step then touches contiguous memory.
    W = weight.t()[order].contiguous()  # a row becomes its error when it is solved
    L = factor.lower
    columns, rows = W.shape
    groups = (order // scheme.width(columns)).tolist()
    S, Z = scales.t().contiguous(), zero_points.t().float()
    Q = torch.empty(W.shape, dtype=torch.uint8, device=W.device)
    total = torch.zeros(rows, device=W.device)
    panel = max(PANEL, block_size)
    for stop in range(columns, 0, -panel):
        start = max(stop - panel, 0)
        # What the errors of solved columns ask of these, times each one's diagonal.
        asked_of_panel = transposed_product(L[stop:, start:stop], W[stop:])
        for end in range(stop, start, -block_size):
            begin = max(end - block_size, start)
            asked = asked_of_panel[begin - start : end - start]
            asked += transposed_product(L[end:stop, begin:end], W[end:stop])
            for i in range(end - 1, begin - 1, -1):
                s, z, diagonal = S[groups[i]], Z[groups[i]], L[i, i]
                wanted = W[i] + asked[i - begin] / diagonal
                q = ((wanted / s).round() + z).clamp(0, scheme.max_level)
                Q[i] = q
                value = (q - z) * s
                total += ((wanted - value) * diagonal).square()
                W[i] -= value
                asked[: i - begin].addr_(L[i, begin:i], W[i])
    del W
    integers = torch.empty_like(Q)
    integers[order] = Q
    solved = QuantizedWeight(integers.t().contiguous(), scales, zero_points, scheme)
    added = _by_parts(weight, solved, order, lambda rows: rows.square_() @ factor.damping)
    return solved.integers, (total - added).clamp_min(0)


def _by_parts(
    weight: Tensor,
    candidate: QuantizedWeight | None,
    order: Tensor,
    measure: Callable[[Tensor], Tensor],
) -> Tensor:
    """Something of each row of a weight, or of what a candidate leaves of it, in another order."""
    step = max(1, VALUES_AT_ONCE // weight.shape[1])
    found = []
    for begin in range(0, len(weight), step):
        part = slice(begin, begin + step)
        rows = weight[part]
        if candidate is not None:
            grid = candidate.scales[part], candidate.zero_points[part]
            rows = rows - dequantize(candidate.integers[part], *grid)
        found.append(measure(rows[:, order]))
    return torch.cat(found)
