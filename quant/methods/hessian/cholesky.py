"""Cholesky factors of a layer's damped Hessian, computed in place.

On the CPU, LAPACK's own routines work in the memory of the matrix: a Hessian is the largest tensor
of the solver, and copies of it decide the peak.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ....common.validation import check_value
from ...recipe.ranges import DampPercent
from .. import blas

LADDER = (1, 2, 5, 10, 20, 50, 100)
"""Multiples of the requested damping, tried in order until the Cholesky factor exists.

Few calibration tokens or strongly correlated inputs give a Hessian that is singular up to rounding
errors. More damping always helps in the end, but moves the solution towards plain rounding."""
LAPACK_MAX_BYTES = 2**31 - 1
"""Largest matrix passed to LAPACK's potrf; OpenBLAS 0.3 segfaults above this size."""
BLOCK = 4096
"""Columns per block of the blocked factorization of larger matrices."""
SOLVE_ROWS = 1024
"""Rows per triangular solve; torch copies its operands several times."""
COPY_ROWS = 512
"""Rows per step when the Hessian is reordered; bounds the temporary copy."""
Precision = Literal["float32", "float64"]


class Factor:
    """Lower Cholesky factor of a damped Hessian.

    Letters: N rows, K columns in the order in which they were given.
    """

    def __init__(
        self, lower: Tensor, damping: Tensor, fraction: float, precision: Precision
    ) -> None:
        self.lower = lower
        """float32 `[K, K]`; undefined above the diagonal."""
        self.damping = damping
        """float32 `[K]`, added to the diagonal of the Hessian."""
        self.fraction = fraction
        """The damping as a fraction of the mean diagonal."""
        self.precision = precision
        """Precision of the factorization."""

    def energies(self, rows: Tensor) -> Tensor:
        """Compute `e H e'` of each row under the undamped Hessian.

        With the damping D, `e (H + D) e' = |e L|^2`, so `e H e' = |e L|^2 - e D e'`. The
        triangular product costs half of one with H, and H need not be kept.

        Args:
            rows: float32 `[N, K]`, overwritten.

        Returns:
            float32 `[N]`, not negative.
        """
        added = rows.square() @ self.damping
        if blas.is_supported(rows):
            blas.multiply_lower_(rows, self.lower)
        else:
            rows = rows @ self.lower.tril()
        return (rows.square_().sum(dim=1) - added).clamp_min(0)

    def solve(self, rows: Tensor) -> Tensor:
        """Compute `rows @ (L L')^-1`.

        Args:
            rows: float32 `[N, K]`, contiguous, overwritten.

        Returns:
            float32 `[N, K]`.
        """
        if not blas.is_supported(rows):
            return torch.cholesky_solve(rows.t(), self.lower.tril()).t()
        blas.solve_lower_(rows, self.lower)
        return rows


def damping_fractions(damp_percent: float) -> tuple[float, ...]:
    """List the fractions of the mean diagonal to try as damping, in order, see `LADDER`.

    Raises:
        ValueError: `damp_percent` is out of range.
    """
    check_value(DampPercent, damp_percent, "damp_percent")
    return tuple(damp_percent * rung for rung in LADDER)


def find_factor(
    hessian: Tensor, order: Tensor, missing: Tensor, damp_percent: float
) -> Factor | None:
    """Factor the damped Hessian: with growing damping in float32, then again in float64.

    float32 comes first although float64 might succeed with less damping: it is twice as fast, takes
    half of the memory, and suffices for all but degenerate Hessians.

    Args:
        hessian: `[K, K]` float32 or float64, symmetric.
        order: int64 `[K]`, columns in the order of the factor.
        missing: float32 `[K]`, by column of `hessian`: added to the diagonal with the damping.
        damp_percent: first damping, as a fraction of the mean diagonal including `missing`.

    Returns:
        The factor, or None if there is none even with the largest damping in float64.

    Raises:
        ValueError: `damp_percent` is out of range.
    """
    extra = missing[order]
    mean = (hessian.diagonal().double() + missing.double()).mean()
    kinds: tuple[Precision, Precision] = ("float32", "float64")
    for precision in kinds:
        for fraction in damping_fractions(damp_percent):
            damping = extra + (fraction * mean).to(extra)
            damped = _ordered(hessian, order, getattr(torch, precision))
            damped.diagonal().add_(damping)
            lower = cholesky_(damped)
            # potrf may succeed on NaN; the diagonal shows it.
            if lower is not None and is_finite(lower.diagonal()):
                return Factor(lower.float(), damping, fraction, precision)
    return None


def is_finite(matrix: Tensor) -> bool:
    """Check that all values are finite, without a temporary matrix of that size."""
    low, high = torch.aminmax(matrix)
    return bool(torch.isfinite(low) & torch.isfinite(high))


def cholesky_(matrix: Tensor) -> Tensor | None:
    """Compute the lower Cholesky factor, in place where LAPACK can work on the matrix.

    Args:
        matrix: float32 or float64 `[K, K]`, symmetric, contiguous; undefined afterwards.

    Returns:
        `[K, K]`, undefined above the diagonal; None if the matrix is not positive definite.
    """
    if not blas.is_supported(matrix):
        lower, info = torch.linalg.cholesky_ex(matrix)
        return None if bool(info != 0) else lower
    if matrix.nbytes <= LAPACK_MAX_BYTES:
        return matrix if blas.factor_(matrix) else None
    # Left-looking blocked algorithm: each block column subtracts the products of the finished ones,
    # factors its diagonal block, and solves the rows below it.
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
        for first in range(0, len(below), SOLVE_ROWS):
            part = below[first : first + SOLVE_ROWS]
            part.copy_(torch.linalg.solve_triangular(upper, part, upper=True, left=False))
    return matrix


def _ordered(matrix: Tensor, order: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy a matrix with its rows and columns in another order."""
    ordered = torch.empty(matrix.shape, dtype=dtype, device=matrix.device)
    for begin in range(0, len(order), COPY_ROWS):
        rows = matrix[order[begin : begin + COPY_ROWS]]
        ordered[begin : begin + COPY_ROWS] = rows[:, order]
    return ordered
