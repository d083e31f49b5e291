"""FP8 keys and values with one scale for all keys and one for all values of a layer.

The cache of vLLM's `--kv-cache-dtype fp8`: E4M3, the value divided by the scale, rounded to nearest
and saturated at 448. The scales are calibrated ones of the checkpoint, or 1. Queries and softmax
weights stay in float, as in vLLM's Triton and FlashInfer backends; backends that also quantize
queries (FlashAttention 3) lose more.
"""

from __future__ import annotations

import torch
from torch import Tensor

FP8_MAX = torch.finfo(torch.float8_e4m3fn).max


def round_fp8(values: Tensor, scale: float) -> Tensor:
    """Quantize keys or values to E4M3 and dequantize them.

    Args:
        values: of any shape.
        scale: of the layer, positive.

    Returns:
        Values of the same shape and dtype. NaN and infinity stay, so that they are not lost.
    """
    wide = values.float()
    levels = (wide / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return torch.where(wide.isfinite(), levels.float() * scale, wide).to(values.dtype)
