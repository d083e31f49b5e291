"""The Hessian of a layer's inputs with the factor and the column order that the solver needs.

Layers that share an input (q, k and v; gate and up) share them as well.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .cholesky import Factor, damping_fractions, find_factor, is_finite


@dataclass(frozen=True)
class PreparedHessian:
    """A Hessian and its factor. Letter: K input features."""

    matrix: Tensor
    """`[K, K]`, float32 or float64."""
    order: Tensor
    """int64 `[K]`: columns in the order of the factor. The solver starts with the last one."""
    dead: Tensor
    """bool `[K]`: input features that are zero in all calibration samples."""
    factor: Factor | None
    """None if no damping up to the largest one makes the Hessian positive definite."""
    damp_percent: float
    """First damping tried, as a fraction of the mean diagonal."""

    def solve(self, rows: Tensor) -> Tensor:
        """Compute `rows @ (H + D)^-1` with the damping D of the factor.

        Args:
            rows: float32 `[N, K]`.

        Returns:
            float32 `[N, K]`.

        Raises:
            ValueError: there is no factor.
        """
        if self.factor is None:
            raise ValueError(
                f"no Cholesky factor up to damping {damping_fractions(self.damp_percent)[-1]:g}; "
                "use more calibration samples or a larger damp_percent"
            )
        solution = torch.empty_like(rows)
        solution[:, self.order] = self.factor.solve(rows[:, self.order])
        return solution


def prepare_hessian(
    hessian: Tensor, *, damp_percent: float = 0.01, act_order: bool = True
) -> PreparedHessian:
    """Choose the order of the columns and factor the damped Hessian in it.

    Args:
        hessian: `[K, K]`, `X' X` of a layer's inputs up to a positive factor.
        damp_percent: fraction of the mean diagonal that is added to the diagonal; the first rung
            of `damping_fractions`.
        act_order: solve columns in the order of falling diagonal.

    Raises:
        ValueError: a parameter is out of range, or the Hessian is not finite.
    """
    damping_fractions(damp_percent)
    if not is_finite(hessian):
        raise ValueError(
            "the Hessian is not finite: the layer's inputs overflowed during calibration; "
            "calibrate in bf16 or fp32"
        )
    matrix = hessian if hessian.dtype == torch.float64 else hessian.float()
    dead = matrix.diagonal() <= 0
    # A lower factor couples each column to those after it, which must be solved before it: the
    # columns to solve first come last.
    order = _solving_order(matrix, act_order).flip(0)
    # The Hessian row of a dead column is zero. Any positive diagonal lets the factor exist and
    # leaves the column uncoupled, which means rounded; the mean of the others keeps the mean of
    # the diagonal, and with it the damping, as it is.
    alive = matrix.diagonal()[~dead]
    missing = dead.float() * (alive.mean().float() if len(alive) else 1.0)
    factor = find_factor(matrix, order, missing, damp_percent)
    return PreparedHessian(matrix, order, dead, factor, damp_percent)


def _solving_order(hessian: Tensor, act_order: bool) -> Tensor:
    """Order the columns by the energy of their inputs, largest first, or as they are.

    The columns solved first have the most columns left to compensate their errors, so they should
    be those whose errors cost most. Equal diagonals stay in order: the result is deterministic.
    """
    if act_order:
        return torch.argsort(hessian.diagonal(), descending=True, stable=True)
    return torch.arange(len(hessian), device=hessian.device)
