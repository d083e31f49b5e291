"""int4 keys and values, rotated, with one scale and zero point per token and head.

The grid of vLLM's `int4_per_token_head` (vllm-project/vllm#40835): a randomized Hadamard transform
of the head's channels, then 16 levels between the smallest and the largest of them. The rotation
spreads an outlier channel over all others. vLLM rotates queries alike and attends in the rotated
space; here keys and values are rotated back, which gives the same products. Not simulated: vLLM
keeps the zero point in the last four bits of the scale (a relative change below 2^-19), and rounds
rotated keys, values and queries to the model's dtype.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

MAX_LEVEL = 15
MIN_SCALE = 1e-6
SIGN_SEED = 0x9E3779B9
"""vLLM's seed of the signs, drawn from a Bernoulli distribution on the CPU."""


def round_int4(values: Tensor) -> Tensor:
    """Quantize keys or values to int4 and dequantize them.

    Args:
        values: `[..., head_dim]`.

    Returns:
        Values of the same shape and dtype; a head with NaN or infinity is NaN.

    Raises:
        ValueError: `head_dim` is not a power of two, so that there is no such transform.
    """
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    rotation = _rotation(values.shape[-1]).to(values.device, wide.dtype)
    rotated = wide @ rotation
    low, high = rotated.aminmax(dim=-1, keepdim=True)
    scales = ((high - low) / MAX_LEVEL).clamp_min(MIN_SCALE)
    zero_points = (-low / scales).round().clamp(0, MAX_LEVEL)
    levels = (rotated / scales + zero_points).round().clamp(0, MAX_LEVEL)
    return (((levels - zero_points) * scales) @ rotation.T).to(values.dtype)


@cache
def _rotation(width: int) -> Tensor:
    """Build the orthogonal matrix, float64 `[width, width]`: signs, then the Hadamard matrix."""
    if width & (width - 1):
        raise ValueError(
            f"head_dim {width}: an int4 KV cache rotates heads, which needs a power of two; "
            "take int8 or fp8"
        )
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < width:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    generator = torch.Generator().manual_seed(SIGN_SEED)
    signs = 2 * torch.bernoulli(torch.full((width,), 0.5), generator=generator) - 1
    return signs[:, None] * matrix / math.sqrt(width)
