"""Symmetric matrix stored as a packed triangle when idle.

During the reduction over shards, several Hessians of one layer exist at a time, and only one of
them is being updated. Kernels need that one as a full square matrix; the others are packed, which
halves their memory (K = 18944 takes 1.4 GB as a square).
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK_ROWS = 1024
"""Rows per block of a packed matrix. Copies and products run block by block, so that they need
little temporary memory."""


class PackedSymmetric:
    """A symmetric matrix in float32, initially zero.

    It is stored either as a square, or packed: as blocks of rows, each up to the diagonal.

    Args:
        size: K, number of rows and columns.
        device: device of the matrix.
        free_buffers: square buffers of packed matrices of the same device, taken and returned by
            all matrices that share this list. Reusing memory is faster than mapping new pages.
    """

    def __init__(
        self,
        size: int,
        device: torch.device | str = "cpu",
        free_buffers: list[Tensor] | None = None,
    ) -> None:
        self.size, self._device, self._free_buffers = size, device, free_buffers
        self._square: Tensor | None = self._allocate().zero_()
        self._packed: list[Tensor] = []
        self._is_lower = False  # the square is correct in its lower triangle only

    def lower(self) -> Tensor:
        """Return float32 `[K, K]` for in-place updates of its lower triangle."""
        square = self._unpack()
        self._is_lower = True
        return square

    def full(self) -> Tensor:
        """Return float32 `[K, K]` with both triangles."""
        square = self._unpack()
        if self._is_lower:
            for begin, end in self._row_ranges():
                square[begin:end, end:] = square[end:, begin:end].t()
                corner = square[begin:end, begin:end].tril()
                square[begin:end, begin:end] = corner + corner.tril(-1).t()
            self._is_lower = False
        return square

    def weighted_sum(
        self, other: PackedSymmetric, share: float, other_share: float
    ) -> PackedSymmetric:
        """Return `share * self + other_share * other`, in the memory of one of them."""
        target, source = (self, other) if other._square is None else (other, self)
        factor, source_factor = (share, other_share) if target is self else (other_share, share)
        for row, source_row in zip(target.row_blocks(), source.row_blocks(), strict=True):
            # Both products are rounded before the sum (no fused multiply-add), so that the result
            # does not depend on which of the two is the target.
            row.mul_(factor).add_(source_row * source_factor)
        target._is_lower = True
        return target

    def pack(self) -> None:
        """Keep only the lower triangle."""
        if self._square is not None:
            self._packed = [block.clone() for block in self.row_blocks()]
            if self._free_buffers is not None:
                self._free_buffers.append(self._square)
            self._square = None

    def row_blocks(self) -> list[Tensor]:
        """Return views of the lower triangle in blocks of rows; contiguous if it is packed."""
        if self._square is None:
            return self._packed
        return [self._square[begin:end, :end] for begin, end in self._row_ranges()]

    def _unpack(self) -> Tensor:
        if self._square is None:
            square = self._allocate()
            for begin, end in self._row_ranges():
                square[begin:end, :end] = self._packed[begin // BLOCK_ROWS]
                self._packed[begin // BLOCK_ROWS] = square[:0]  # frees the block
            self._square, self._packed, self._is_lower = square, [], True
        return self._square

    def _allocate(self) -> Tensor:
        for index, buffer in enumerate(self._free_buffers or ()):
            if len(buffer) == self.size:
                assert self._free_buffers is not None
                return self._free_buffers.pop(index)
        return torch.empty(self.size, self.size, device=self._device)

    def _row_ranges(self) -> list[tuple[int, int]]:
        starts = range(0, self.size, BLOCK_ROWS)
        return [(begin, min(begin + BLOCK_ROWS, self.size)) for begin in starts]
