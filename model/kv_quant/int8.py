"""int8 keys and values with one scale per token and head.

The grid of vLLM's `int8_per_token_head` since vllm-project/vllm#45361: scale = largest magnitude /
127, rounded to nearest; earlier versions truncated.
"""

from __future__ import annotations

import torch
from torch import Tensor


def quantize_kv(values: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize keys or values symmetrically to int8, with one scale per token and head.

    A scale per token can be computed when the token is appended; a scale per channel would change
    with every new token. The scale is the largest magnitude / 127, or 1 if all values are zero.

    Args:
        values: `[..., head_dim]`.

    Returns:
        int8 `[..., head_dim]` and float32 scales `[...]`. NaN and infinity give a scale that is not
        finite, so that they are not lost in the integers.
    """
    wide = values.float()
    scales = wide.abs().amax(-1) / 127
    scales = torch.where(scales == 0, torch.ones_like(scales), scales)
    return (wide / scales[..., None]).round().clamp(-127, 127).to(torch.int8), scales


def dequantize_kv(levels: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Dequantize the result of `quantize_kv` to `dtype`, `[..., head_dim]`."""
    return (levels.float() * scales[..., None]).to(dtype)
