"""Block sizes of the Triton kernels: tables by number of tokens, and a default beyond them.

The values are derived from the sizes of tensor cores and shared memory; none is measured yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

MIN_BLOCK = 16
"""Smallest side of a block that tensor cores support."""


@dataclass(frozen=True)
class Blocks:
    """Division of a product into programs."""

    m: int
    """Tokens per program."""
    n: int
    """Output features per program."""
    k: int
    """Inputs per step of the inner loop."""
    splits: int = 1
    """Programs that share the inputs of a tile (split-K)."""
    warps: int = 4
    stages: int = 3
    """Depth of the software pipeline: loads in flight while a block is multiplied."""

    def within(self, group: int) -> Blocks:
        """Reduce k until it divides the group size, so that a block has one scale per row."""
        k = self.k
        while group % k:
            k //= 2
        return replace(self, k=k)

    def split_size(self, inputs: int) -> int:
        """Inputs per split, a multiple of k."""
        return -(-inputs // (self.splits * self.k)) * self.k


# (largest number of tokens, blocks). With few tokens there are few output tiles, and splitting the
# inputs keeps all multiprocessors busy. The integer kernel does not split: its groups are added in
# order, as the reference specifies.
FLOAT: tuple[tuple[int, Blocks], ...] = (
    (16, Blocks(16, 64, 128, splits=4)),
    (64, Blocks(64, 64, 64, splits=2)),
)
FLOAT_DEFAULT = Blocks(128, 128, 64, warps=8)
INTEGER: tuple[tuple[int, Blocks], ...] = ((16, Blocks(16, 64, 128)), (64, Blocks(64, 64, 128)))
INTEGER_DEFAULT = Blocks(128, 128, 128, warps=8)


def float_blocks(m: int, n: int, k: int) -> Blocks:
    """Choose the blocks of a weight-only product of `m` tokens, `n` outputs and `k` inputs."""
    return _look_up(FLOAT, FLOAT_DEFAULT, m)


def integer_blocks(m: int, n: int, k: int) -> Blocks:
    """Choose the blocks of a product with int8 activations."""
    return _look_up(INTEGER, INTEGER_DEFAULT, m)


def _look_up(table: tuple[tuple[int, Blocks], ...], default: Blocks, m: int) -> Blocks:
    return next((blocks for limit, blocks in table if m <= limit), default)
