"""GPTQ: quantize a matrix column by column and let later columns make up for earlier errors.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", arXiv 2210.17323, section 3 and algorithm 1. Differences from the paper:

- The upper Cholesky factor of the inverse Hessian comes from one Cholesky of the flipped Hessian
  and one triangular inverse, not from an inverse and a second Cholesky: less work, and nothing is
  squared in between.
- Columns are solved in order of falling Hessian diagonal, on scales fixed beforehand from the
  original groups, so the order leaves no trace in the result (static groups).
- Scales are searched beforehand (`scale_search.py`).
- A column that calibration never excited is rounded; the paper's code sets it to zero.
- Rows on which plain rounding does better under the same Hessian keep the rounded integers.
"""

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from .affine import QuantizedWeight, choose_qparams, quantize
from .error import row_energy
from .scale_search import search_scales
from .scheme import QuantScheme

# Multiples of the requested damping, tried in order until the Cholesky factor exists.
LADDER = (1, 2, 5, 10, 20, 50, 100)

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
    precision: Literal["float32", "float64"]
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


def inverse_factor(hessian: Tensor) -> Tensor | None:
    """Upper triangular U with ``U' U = inverse(hessian)``, or None if it is not positive definite.

    With J the flip of rows and columns and ``J H J = L L'``, the matrix ``R = J L J`` is upper
    triangular and ``H = R R'``; hence ``U = inverse(R)``.

    Args:
        hessian: symmetric ``[K, K]``, float32 or float64.
    """
    lower, info = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if bool(info != 0):
        return None
    upper = lower.flip(0, 1)
    del lower
    factor = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    torch.linalg.solve_triangular(upper, factor, upper=True, out=factor)
    usable = torch.isfinite(factor).all() & (factor.diagonal() > 0).all()
    return factor if bool(usable) else None


def damped_factor(
    hessian: Tensor, damp_percent: float
) -> tuple[Tensor | None, float | None, Literal["float32", "float64"]]:
    """Climb the damping ladder in float32, then again in float64.

    Args:
        hessian: ``[K, K]`` float32 or float64, diagonal positive.
        damp_percent: first rung, as a fraction of the mean diagonal (0.01).

    Returns:
        The float32 factor (None if every rung fails), the fraction used, and the precision.
    """
    mean = hessian.diagonal().double().mean()
    precision: Literal["float32", "float64"] = "float32"
    for precision in ("float32", "float64"):
        matrix = hessian.to(getattr(torch, precision))
        for rung in LADDER:
            fraction = damp_percent * rung
            damped = matrix.clone()
            damped.diagonal().add_((fraction * mean).to(matrix.dtype))
            factor = inverse_factor(damped)
            if factor is not None:
                return factor.float(), fraction, precision
    return None, None, precision


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
    original = weight.float()
    matrix = hessian if hessian.dtype == torch.float64 else hessian.float()
    scales, zero_points = choose_qparams(original, scheme)
    if scale_search:
        scales = search_scales(original, scales, zero_points, scheme)
    rounded = quantize(original, scales, zero_points, scheme)

    dead = matrix.diagonal() <= 0
    order = _solving_order(matrix, act_order)
    ordered = matrix[order][:, order]
    # A dead column's row of the Hessian is zero: any positive diagonal leaves it uncoupled, and
    # the mean of the others leaves the damping alone.
    alive = matrix.diagonal()[~dead]
    ordered.diagonal()[dead[order]] = alive.mean() if len(alive) else 1.0
    factor, used, precision = damped_factor(ordered, damp_percent)
    del ordered

    packed = QuantizedWeight(rounded, scales, zero_points, scheme)
    rtn_rows = _row_errors(original, packed, matrix)
    energy = row_energy(original, matrix).sum().clamp_min(torch.finfo(torch.float32).tiny)
    rtn_error = float(rtn_rows.sum() / energy)
    if factor is None:
        reason = f"no Cholesky factor up to damping {damp_percent * LADDER[-1]:g}, rounded instead"
        return GPTQResult(
            weight=packed,
            error=rtn_error,
            rtn_error=rtn_error,
            final_error=rtn_error,
            damp_percent=None,
            precision=precision,
            fallback_rows=0,
            dead_columns=int(dead.sum()),
            fallback=reason,
        )

    solved = _solve(original, factor, order, scales, zero_points, scheme, block_size)
    gptq_rows = _row_errors(original, QuantizedWeight(solved, scales, zero_points, scheme), matrix)
    worse = gptq_rows > rtn_rows * (1 + _TIE)
    integers = torch.where(worse[:, None], rounded, solved)
    kept = torch.where(worse, rtn_rows, gptq_rows)
    return GPTQResult(
        weight=QuantizedWeight(integers, scales, zero_points, scheme),
        error=float(gptq_rows.sum() / energy),
        rtn_error=rtn_error,
        final_error=float(kept.sum() / energy),
        damp_percent=used,
        precision=precision,
        fallback_rows=int(worse.sum()),
        dead_columns=int(dead.sum()),
        fallback=None,
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
    if not bool(torch.isfinite(hessian).all()):
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
    factor: Tensor,
    order: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    scheme: QuantScheme,
    block_size: int,
) -> Tensor:
    """The paper's algorithm 1 on columns in solving order; returns uint8 in the original order."""
    # Columns of the weight lie as rows here: each step then touches contiguous memory.
    W = weight.t()[order].contiguous()
    U = factor
    columns = W.shape[0]
    group = order // scheme.width(columns)
    S = scales.t()[group].contiguous()
    Z = zero_points.t()[group].float()
    Q = torch.empty_like(W)
    for start in range(0, columns, block_size):
        stop = min(start + block_size, columns)
        errors = torch.empty_like(W[start:stop])
        for i in range(start, stop):
            q = ((W[i] / S[i]).round() + Z[i]).clamp(0, scheme.max_level)
            Q[i] = q
            e = (W[i] - (q - Z[i]) * S[i]) / U[i, i]
            errors[i - start] = e
            W[i:stop].addr_(U[i, i:stop], e, alpha=-1)
        W[stop:].addmm_(U[start:stop, stop:].t(), errors, alpha=-1)
    integers = torch.empty_like(Q, dtype=torch.uint8)
    integers[order] = Q.to(torch.uint8)
    return integers.t().contiguous()


def _row_errors(weight: Tensor, candidate: QuantizedWeight, hessian: Tensor) -> Tensor:
    return row_energy(weight - candidate.dequantize(), hessian)
