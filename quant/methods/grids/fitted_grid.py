"""A grid with its scales: what rounding and the solvers need of it, whatever its kind.

A scheme chooses the scales of a weight (`GridScheme.fit_for_rounding`, `fit_for_solver`) before any
weight is rounded. From then on a method only asks for the nearest levels: of a whole matrix, or of
one column at a time.

Letters: N = out_features, K = in_features.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

from torch import Tensor

from ...compressed_weight import CompressedWeight

W_co = TypeVar("W_co", bound=CompressedWeight, covariant=True)


class ColumnRounder(Protocol):
    """Rounds the columns of a weight one by one, and keeps their indices."""

    @property
    def indices(self) -> Tensor:
        """uint8 `[K, N]`, in the order of the solver: the indices of the columns so far."""
        ...

    def round(self, column: int, target: Tensor) -> Tensor:
        """Store the indices of the levels nearest to a column, and return these levels.

        Args:
            column: position in the order of the solver.
            target: float32 `[N]`.

        Returns:
            float32 `[N]`, in the unit of the weight.
        """
        ...


class FittedGrid(Protocol[W_co]):
    """The levels of every group of one weight."""

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the index of the level nearest to each weight `[N, K]`, uint8 `[N, K]`."""
        ...

    def values(self, indices: Tensor, rows: slice) -> Tensor:
        """Return the levels of some rows, float32 `[n, K]`.

        Args:
            indices: uint8 `[n, K]`, of these rows.
            rows: their position in the weight.
        """
        ...

    def columns(self, order: Tensor) -> ColumnRounder:
        """Return a rounder for columns in another order, int64 `[K]`."""
        ...

    def compressed(self, indices: Tensor) -> W_co:
        """Return the compressed weight of indices, uint8 `[N, K]`."""
        ...


class Fits(Protocol[W_co]):
    """A scheme by the kind of weight that it gives, see `GridScheme`."""

    def fit_for_solver(
        self, weight: Tensor, *, search: bool = True, fused_range: float | None = None
    ) -> FittedGrid[W_co]:
        """See `GridScheme.fit_for_solver`."""
        ...
