"""Quantization of tokens for the 8-bit tensor cores: one kernel finds scales, rounds and orders.

Levels are stored in the order of the packed words (`packing.py`), which the products read as they
are, without moving bytes between registers.

Letters: M = tokens, K = in_features.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096
"""Inputs per step; a token is read twice, the second time from the cache."""
E4M3_LARGEST = tl.constexpr(448.0)
LEAST = tl.constexpr(torch.finfo(torch.float32).tiny)


@triton.jit
def _ordered(levels, ORDER: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr):
    """Order levels `[BLOCK]` as packed bytes or nibbles; `inputs` leaves them as they are."""
    if ORDER == "bytes":
        # Input 16 word + 8 shift + 2 lane + half, to the order of `packing.input_order`.
        parts = tl.reshape(levels, (BLOCK // TILE, TILE // 16, 2, 4, 2))
        return tl.reshape(tl.permute(parts, (0, 3, 1, 4, 2)), (BLOCK,))
    elif ORDER == "nibbles":
        # Registers of int8 have the low or the high nibbles of a word, see `byte_products.py`:
        # input 32 word + 16 pair + 8 nibble + 2 lane + half is byte 2 half + pair of a register.
        parts = tl.reshape(levels, (BLOCK // 32, 2, 2, 4, 2))
        return tl.reshape(tl.permute(parts, (0, 2, 3, 4, 1)), (BLOCK,))
    else:
        return levels


@triton.jit
def _quantize(
    x,
    input_scale,
    levels,
    scales,
    k_size,
    x_stride,
    STATIC: tl.constexpr,
    E4M3: tl.constexpr,
    ORDER: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    levels += row * k_size
    positions = tl.arange(0, BLOCK)
    if STATIC:
        scale = tl.load(input_scale).to(tl.float32)
    else:
        most = tl.zeros((BLOCK,), dtype=tl.int32)
        for start in range(0, k_size, BLOCK):
            inputs = start + positions
            values = tl.load(x + inputs, mask=inputs < k_size, other=0.0).to(tl.float32)
            # Compared as integers, in which NaN is larger than any number: the scale becomes NaN.
            most = tl.maximum(most, tl.abs(values).to(tl.int32, bitcast=True))
        largest = tl.max(most, axis=0).to(tl.float32, bitcast=True)
        if E4M3:
            scale = tl.maximum(
                tl.div_rn(largest, E4M3_LARGEST), LEAST, propagate_nan=tl.PropagateNan.ALL
            )
            scale = tl.where(largest < float("inf"), scale, float("nan"))
        else:
            scale = tl.div_rn(largest, 127.0)
            scale = tl.where(scale == 0.0, 1.0, scale)
    for start in range(0, k_size, BLOCK):
        inputs = start + positions
        valid = inputs < k_size
        values = tl.load(x + inputs, mask=valid, other=0.0).to(tl.float32)
        level = tl.div_rn(values, tl.zeros_like(values) + scale)
        if E4M3:
            level = tl.clamp(level, -E4M3_LARGEST, E4M3_LARGEST, propagate_nan=tl.PropagateNan.ALL)
            # In floats of about 1.5 * 2**23 steps, adding and subtracting that number rounds to a
            # step, ties to even; the step of E4M3 is 2**-3 of the power of two, at least 2**-9.
            power = (tl.abs(level).to(tl.int32, bitcast=True) & 0x7F800000).to(
                tl.float32, bitcast=True
            )
            step = tl.maximum(power, 0.015625) * (12582912.0 / 8)
            level = (level + step) - step
        else:
            level = tl.where(level == level, level, 0.0)  # NaN to 0
            level = tl.minimum(tl.maximum(level, -128.0), 127.0)
            level = (level + 12582912.0) - 12582912.0  # as above, with steps of 1
        ordered = _ordered(level.to(levels.dtype.element_ty), ORDER, TILE, BLOCK)
        tl.store(levels + inputs, ordered, mask=valid)
    tl.store(scales + tl.program_id(0), scale)


def quantize_tokens(
    x: Tensor,
    dtype: torch.dtype,
    scale: Tensor | None = None,
    *,
    levels: str = "int8",
    order: str = "inputs",
    tile: int = 1,
) -> tuple[Tensor, Tensor]:
    """Quantize tokens, each with its own scale unless one is given.

    Args:
        x: float `[M, K]`, its rows contiguous.
        dtype: in which levels are stored: int8, float8_e4m3fn, or a 16-bit float for E4M3 levels.
        scale: float32 scalar for all tokens, or None for one per token.
        levels: `int8`, as `reference.quantize_activations`, or `e4m3`, as `rounded_activations`.
        order: of the stored levels: `inputs`, or that of packed `bytes` or `nibbles`.
        tile: inputs per tile of a packed weight.

    Returns:
        Levels `[M, K]` and float32 scales `[M]`.
    """
    m, k = x.shape
    stored = torch.empty((m, k), dtype=dtype, device=x.device)
    scales = torch.empty(m, dtype=torch.float32, device=x.device)
    if m:
        _quantize[(m,)](
            x,
            scales if scale is None else scale,  # any pointer; not read without a given scale
            stored,
            scales,
            k,
            x.stride(0),
            STATIC=scale is not None,
            E4M3=levels == "e4m3",
            ORDER=order,
            TILE=tile,
            BLOCK=min(BLOCK, triton.next_power_of_2(k)),
            num_warps=8,
        )
    return stored, scales
