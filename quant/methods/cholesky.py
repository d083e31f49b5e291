"""Cholesky factors of a layer's damped Hessian, made in place.

On the CPU LAPACK's own routines work in the matrix that they are given; a Hessian is the largest
thing that solving a layer holds.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from . import blas

# Multiples of the requested damping, tried in order until the Cholesky factor exists.
LADDER = (1, 2, 5, 10, 20, 50, 100)
LARGEST = 2**31 - 1
"""Bytes of a matrix that LAPACK is trusted with: OpenBLAS 0.3's factor crashes beyond."""
BLOCK = 4096
SOLVED_AT_ONCE = 1024  # rows below a block: torch's triangular solver copies them several times
ROWS_AT_ONCE = 512  # of a Hessian whose columns are brought into another order
Precision = Literal["float32", "float64"]


class Factor:
    """The lower Cholesky factor of a damped Hessian.

    Letters: N rows, K columns in the order in which they were given.
    """

    def __init__(
        self, lower: Tensor, damping: Tensor, fraction: float, precision: Precision
    ) -> None:
        self.lower = lower
        """float32 ``[K, K]``; what lies above the diagonal means nothing."""
        self.damping = damping
        """float32 ``[K]``: what was added to the Hessian's diagonal."""
        self.fraction = fraction
        """The same, as a fraction of the mean diagonal."""
        self.precision = precision
        """In which the factor was found."""

    def energies(self, rows: Tensor) -> Tensor:
        """``e H e'`` of each row under the Hessian as it was, damping apart.

        Args:
            rows: float32 ``[N, K]``, overwritten.

        Returns:
            float32 ``[N]``, not negative.
        """
        added = rows.square() @ self.damping
        if blas.reaches(rows):
            blas.multiply_lower_(rows, self.lower)
        else:
            rows = rows @ self.lower.tril()
        return (rows.square_().sum(dim=1) - added).clamp_min(0)


def find_factor(
    hessian: Tensor, order: Tensor, missing: Tensor, damp_percent: float
) -> Factor | None:
    """Climb the damping ladder in float32, then again in float64, until there is a factor.

    Args:
        hessian: ``[K, K]`` float32 or float64, symmetric.
        order: int64 ``[K]``: the columns in the order that is wanted.
        missing: float32 ``[K]``, by column: added to the diagonal beside the damping.
        damp_percent: first rung, as a fraction of the mean of the diagonal with what is missing.
    """
    extra = missing[order]
    mean = (hessian.diagonal().double() + missing.double()).mean()
    kinds: tuple[Precision, Precision] = ("float32", "float64")
    for precision in kinds:
        for rung in LADDER:
            fraction = damp_percent * rung
            damping = extra + (fraction * mean).to(extra)
            damped = _ordered(hessian, order, getattr(torch, precision))
            damped.diagonal().add_(damping)
            lower = _cholesky_(damped)
            if lower is not None and is_finite(lower.diagonal()):
                return Factor(lower.float(), damping, fraction, precision)
    return None


def is_finite(matrix: Tensor) -> bool:
    """Whether all values are; without another matrix of that size."""
    low, high = torch.aminmax(matrix)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _ordered(matrix: Tensor, order: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows and columns in another order."""
    found = torch.empty(matrix.shape, dtype=dtype, device=matrix.device)
    for begin in range(0, len(order), ROWS_AT_ONCE):
        rows = matrix[order[begin : begin + ROWS_AT_ONCE]]
        found[begin : begin + ROWS_AT_ONCE] = rows[:, order]
    return found


def _cholesky_(matrix: Tensor) -> Tensor | None:
    """The lower factor, in the matrix's place where that can be; None if there is none."""
    if not blas.reaches(matrix):
        lower, info = torch.linalg.cholesky_ex(matrix)
        return None if bool(info != 0) else lower
    if matrix.nbytes <= LARGEST:
        return matrix if blas.factor_(matrix) else None
    # Block columns from the left: each takes what those before it leave, and is then solved.
    for begin in range(0, len(matrix), BLOCK):
        end = min(begin + BLOCK, len(matrix))
        rows, before = matrix[begin:end, begin:end], matrix[begin:end, :begin]
        corner = rows.addmm(before, before.t(), alpha=-1)
        if not blas.factor_(corner):
            return None
        rows.copy_(corner)
        below = matrix[end:, begin:end]
        below.addmm_(matrix[end:, :begin], before.t(), alpha=-1)
        upper = corner.tril().t()
        for first in range(0, len(below), SOLVED_AT_ONCE):
            part = below[first : first + SOLVED_AT_ONCE]
            part.copy_(torch.linalg.solve_triangular(upper, part, upper=True, left=False))
    return matrix
