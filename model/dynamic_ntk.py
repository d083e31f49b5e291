"""Rotary positions and attention scale of Qwen-VL of 2023 beyond the length of its training.

Dynamic NTK: a prompt longer than the training's raises the base of the rotary frequencies, by a
factor that is decided once, when the prompt is read, and kept for all tokens generated after it.
So the position ids of such a prompt carry the factor: their upper bits hold its exponent, and ids
of later tokens, which are the last one plus a number, have it too. Ids of a prompt within the
training's length are plain numbers, for which the factor is 1, and stay so when its answer goes
beyond it.

LogN: a query at a position p (from 1) beyond the training's length L is multiplied by log_L(p).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .sizes import LengthScaling, TextConfig

EXPONENT_BIT = 32
"""Lowest bit of the exponent in a position id; positions are below 2**32."""


def ntk_exponent(tokens: int, trained: int) -> int:
    """Return the exponent e of the factor 2**e - 1 for a prompt of some length, 0 for none.

    Args:
        tokens: length of the prompt, at least 1.
        trained: length of the training.
    """
    if tokens <= trained:
        return 0
    return math.ceil(math.log2(tokens / trained) + 1)


def scaled_positions(positions: Tensor, tokens: int, scaling: LengthScaling) -> Tensor:
    """Add the exponent to position ids of a prompt.

    Args:
        positions: int64.
        tokens: length of the prompt without its answer.
        scaling: of the decoder.
    """
    exponent = ntk_exponent(tokens, scaling.trained_tokens) if scaling.dynamic_ntk else 0
    return positions + (exponent << EXPONENT_BIT)


def split_positions(position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Split ids into positions and exponents, both int64."""
    return position_ids & ((1 << EXPONENT_BIT) - 1), position_ids >> EXPONENT_BIT


def ntk_rotary(position_ids: Tensor, config: TextConfig) -> tuple[Tensor, Tensor]:
    """Compute cosine and sine of the angles, float32 `[batch, tokens, head_dim / 2]`.

    Args:
        position_ids: int64 `[batch, tokens]`, with exponents.
        config: gives base and width of the heads.
    """
    positions, exponents = split_positions(position_ids)
    dim = config.head_dim
    powers = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
    bases = [
        config.rope_theta * max(2.0**exponent - 1, 1.0) ** (dim / (dim - 2))
        for exponent in range(int(exponents.max()) + 1)
    ]
    # On the CPU, because pow differs in the last bit between devices.
    table = torch.stack([1.0 / base**powers for base in bases]).to(position_ids.device)
    angles = positions[..., None].float() * table[exponents]
    return angles.cos(), angles.sin()


def logn_scale(position_ids: Tensor, scaling: LengthScaling) -> Tensor:
    """Compute the factor of each query, float32 of the shape of the ids.

    Args:
        position_ids: int64, with exponents.
        scaling: of the decoder.
    """
    count = (split_positions(position_ids)[0] + 1).double()
    trained = float(scaling.trained_tokens)
    # In float64, and rounded once: positions that differ give scales that differ.
    return (count.clamp(min=trained).log() / math.log(trained)).float()
