"""How the Triton kernels cut their work: tables by number of tokens, and a default beyond them.

The values follow from the sizes of tensor cores and shared memory; they were not measured yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LEAST = 16
"""Of every side of a block: what tensor cores take."""


@dataclass(frozen=True)
class Blocks:
    """One way to cut a product."""

    m: int
    """Tokens of a program."""
    n: int
    """Output features of a program."""
    k: int
    """Inputs at a time."""
    parts: int = 1
    """Into how many parts the inputs are cut, each with programs of its own."""
    warps: int = 4
    stages: int = 3

    def within(self, group: int) -> Blocks:
        """The same with a k that divides the group, so that a block has one scale per row."""
        k = self.k
        while group % k:
            k //= 2
        return replace(self, k=k)

    def part(self, inputs: int) -> int:
        """Inputs of a part: a multiple of k."""
        return -(-inputs // (self.parts * self.k)) * self.k


# Most tokens -> blocks. Few tokens leave few tiles: parts keep the multiprocessors busy.
FLOAT: tuple[tuple[int, Blocks], ...] = (
    (16, Blocks(16, 64, 128, parts=4)),
    (64, Blocks(64, 64, 64, parts=2)),
)
FLOAT_DEFAULT = Blocks(128, 128, 64, warps=8)
INTEGER: tuple[tuple[int, Blocks], ...] = ((16, Blocks(16, 64, 128)), (64, Blocks(64, 64, 128)))
INTEGER_DEFAULT = Blocks(128, 128, 128, warps=8)


def float_blocks(m: int, n: int, k: int) -> Blocks:
    """Blocks for weight-only products of `m` tokens, `n` outputs and `k` inputs."""
    return _look_up(FLOAT, FLOAT_DEFAULT, m)


def integer_blocks(m: int, n: int, k: int) -> Blocks:
    """Blocks for products with int8 activations."""
    return _look_up(INTEGER, INTEGER_DEFAULT, m)


def _look_up(table: tuple[tuple[int, Blocks], ...], default: Blocks, m: int) -> Blocks:
    return next((blocks for most, blocks in table if m <= most), default)
