"""Hadamard matrices: orthogonal up to a factor, with entries 1 and -1.

Powers of two by Sylvester's doubling, other orders by Paley's two constructions over the integers
modulo a prime (R. Paley, "On orthogonal matrices", 1933), and doublings of these. The widths of
published models are among them: 1536 = 12 * 128, 2560 = 20 * 128, 3584 = 28 * 128.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor


def decompose(size: int) -> tuple[int, int] | None:
    """Write a size as the order of a known Hadamard matrix times a power of two.

    Returns:
        The order, as small as possible, and the power of two; None if no construction fits.
    """
    power = size & -size
    while power:
        order = size // power
        if order == 1 or _paley_prime(order) is not None:
            return order, power
        power //= 2
    return None


@cache
def hadamard(order: int) -> Tensor:
    """Return a Hadamard matrix of order 1 or one of Paley's, float64 `[order, order]`.

    Raises:
        ValueError: no construction fits the order.
    """
    if order == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    prime = _paley_prime(order)
    if prime is None:
        raise ValueError(f"no construction of a Hadamard matrix of order {order} is known here")
    residues = {x * x % prime for x in range(1, prime)}
    character = torch.tensor([0, *(1 if x in residues else -1 for x in range(1, prime))])
    index = torch.arange(prime)
    jacobsthal = character[(index[:, None] - index[None, :]) % prime].to(torch.float64)
    core = torch.zeros(prime + 1, prime + 1, dtype=torch.float64)
    core[0, 1:] = 1
    core[1:, 0] = -1 if prime % 4 == 3 else 1
    core[1:, 1:] = jacobsthal
    if prime % 4 == 3:
        return core + torch.eye(prime + 1, dtype=torch.float64)
    diagonal = torch.tensor([[1, -1], [-1, -1]], dtype=torch.float64)
    others = torch.tensor([[1, 1], [1, -1]], dtype=torch.float64)
    return torch.kron(torch.eye(prime + 1, dtype=torch.float64), diagonal) + torch.kron(
        core, others
    )


def multiply_by_power(x: Tensor, power: int) -> Tensor:
    """Multiply the last dimension by Sylvester's matrix of order `power`, by butterflies.

    Args:
        x: `[..., power]` float.
        power: a power of two.

    Returns:
        Same shape; not normalized.
    """
    half = 1
    while half < power:
        pairs = x.reshape(*x.shape[:-1], power // (2 * half), 2, half)
        first, second = pairs.unbind(-2)
        x = torch.stack((first + second, first - second), dim=-2).reshape(x.shape)
        half *= 2
    return x


def _paley_prime(order: int) -> int | None:
    """Return the prime of a construction of this order: order - 1, or order / 2 - 1."""
    if order % 4 == 0 and (order - 1) % 4 == 3 and _is_prime(order - 1):
        return order - 1
    if order % 4 == 0 and (order // 2 - 1) % 4 == 1 and _is_prime(order // 2 - 1):
        return order // 2 - 1
    return None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % d for d in range(2, int(number**0.5) + 1))
