"""A symmetric matrix that takes half of its memory while nobody needs it."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 1024  # at a time: a copy of a whole half would be half as large as the matrix


class PackedSymmetric:
    """A symmetric matrix in float32, at first of zeros.

    It lies in memory as a whole, or folded: as blocks of rows up to the diagonal.

    Args:
        size: K, rows and columns.
        device: where it is.
        spare: memory that others of this size and place do not need while they are folded, to be
            taken from and added to: fresh memory is slow.
    """

    def __init__(
        self,
        size: int,
        device: torch.device | str = "cpu",
        spare: list[Tensor] | None = None,
    ) -> None:
        self.size, self._device, self._spare = size, device, spare
        self._whole: Tensor | None = self._memory().zero_()
        self._folded: list[Tensor] = []
        self._is_lower = False

    def lower(self) -> Tensor:
        """float32 ``[K, K]`` to be changed, of which only the lower half is and stays right."""
        whole = self._unfolded()
        self._is_lower = True
        return whole

    def mirrored(self) -> Tensor:
        """float32 ``[K, K]``."""
        whole = self._unfolded()
        if self._is_lower:
            for begin, end in self._blocks():
                whole[begin:end, end:] = whole[end:, begin:end].t()
                corner = whole[begin:end, begin:end].tril()
                whole[begin:end, begin:end] = corner + corner.tril(-1).t()
            self._is_lower = False
        return whole

    def plus(self, other: PackedSymmetric, share: float, other_share: float) -> PackedSymmetric:
        """``share * self + other_share * other``, in the memory of one of them."""
        target, source = (self, other) if other._whole is None else (other, self)
        factor, added = (share, other_share) if target is self else (other_share, share)
        for row, more in zip(target.pieces(), source.pieces(), strict=True):
            # Each product is rounded: which of the two is the target must not be seen.
            row.mul_(factor).add_(more * added)
        target._is_lower = True
        return target

    def fold(self) -> None:
        """Keep only the lower half."""
        if self._whole is not None:
            self._folded = [piece.clone() for piece in self.pieces()]
            if self._spare is not None:
                self._spare.append(self._whole)
            self._whole = None

    def pieces(self) -> list[Tensor]:
        """The lower half in blocks of rows, to be changed; contiguous if it is folded."""
        if self._whole is None:
            return self._folded
        return [self._whole[begin:end, :end] for begin, end in self._blocks()]

    def _unfolded(self) -> Tensor:
        if self._whole is None:
            whole = self._memory()
            for begin, end in self._blocks():
                whole[begin:end, :end] = self._folded[begin // ROWS]
                self._folded[begin // ROWS] = whole[:0]  # its memory may go
            self._whole, self._folded, self._is_lower = whole, [], True
        return self._whole

    def _memory(self) -> Tensor:
        for place, tensor in enumerate(self._spare or ()):
            if len(tensor) == self.size:
                assert self._spare is not None
                return self._spare.pop(place)
        return torch.empty(self.size, self.size, device=self._device)

    def _blocks(self) -> list[tuple[int, int]]:
        starts = range(0, self.size, ROWS)
        return [(begin, min(begin + ROWS, self.size)) for begin in starts]
