"""Random rotations: a Hadamard matrix with random signs, or else a random orthogonal matrix.

`R = D H / sqrt(n)`, with D a diagonal of random signs ("QuaRot", arXiv 2404.00456, section 3), is
dense, so that every channel of the result is a sum of all channels, yet it takes n log n additions.
For sizes without a known Hadamard matrix R is the orthogonal factor of a random Gaussian matrix
(uniform over all rotations and reflections, F. Mezzadri, math-ph/0609050). All of it in float64.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .hadamard import decompose, hadamard, multiply_by_power


@dataclass(frozen=True, eq=False)
class Rotation:
    """An orthogonal matrix R `[n, n]`, which is not stored if it is a Hadamard matrix."""

    size: int
    signs: Tensor
    """float64 `[n]`; of the Hadamard matrix."""
    dense: Tensor | None = None
    """float64 `[n, n]`; None: R is a Hadamard matrix."""

    @classmethod
    def random(cls, size: int, key: str) -> Rotation:
        """Draw a rotation, determined by its size and `key`."""
        digest = hashlib.sha256(key.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        signs = 1 - 2 * torch.randint(2, (size,), generator=generator).to(torch.float64)
        if decompose(size) is not None:
            return cls(size, signs)
        gaussian = torch.randn(size, size, generator=generator, dtype=torch.float64)
        orthogonal, upper = torch.linalg.qr(gaussian)
        return cls(size, signs, orthogonal * upper.diagonal().sign())

    @property
    def label(self) -> str:
        """Short form for plans and records, see `describe`."""
        return describe(self.size)

    def apply(self, x: Tensor) -> Tensor:
        """Multiply rows by R: float64 `[..., n]` to the same shape."""
        if self.dense is not None:
            return x @ self.dense
        parts = decompose(self.size)
        assert parts is not None
        order, power = parts
        y = multiply_by_power((x * self.signs).reshape(*x.shape[:-1], order, power), power)
        if order > 1:
            y = torch.einsum("ij,...ip->...jp", hadamard(order), y)
        return y.reshape(x.shape) / math.sqrt(self.size)

    def matrix(self) -> Tensor:
        """Return R, float64 `[n, n]`."""
        return self.apply(torch.eye(self.size, dtype=torch.float64))


def describe(size: int) -> str:
    """Describe the rotation that `Rotation.random` draws for a size.

    >>> describe(3584)
    'Hadamard 28 x 128'
    """
    parts = decompose(size)
    if parts is None:
        return f"random orthogonal {size}"
    order, power = parts
    return f"Hadamard {power}" if order == 1 else f"Hadamard {order} x {power}"
