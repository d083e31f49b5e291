"""Weights from packed words, in registers; device functions of the kernels.

The layout is that of `packing.py`. Two weights at a time are moved to the fraction of a 16-bit
float with a fixed exponent (128 + q in bf16, 1024 + q in fp16), from which the zero point is
subtracted exactly (Kim et al., arXiv 2211.10017).

Letters: N = rows of a block, K = inputs of a step, which is one or several tiles.
"""

import os

import torch
import triton
import triton.language as tl

# Triton's interpreter stores bf16 as integers and would multiply those; it has no inline assembly.
# Float32 products of bf16 values are exact, so that widening changes nothing. Inputs in float32
# are computed the same way on a GPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _fused(levels, factor, offset, DTYPE: tl.constexpr):
    """Compute `levels * factor + offset` on pairs of 16-bit floats, rounded once."""
    if DTYPE == tl.bfloat16:
        return tl.inline_asm_elementwise(
            "fma.rn.bf16x2 $0, $1, $2, $3;",
            "=r,r,r,r",
            [levels, factor, offset],
            tl.bfloat16,
            True,
            2,
        )
    else:
        return tl.inline_asm_elementwise(
            "fma.rn.f16x2 $0, $1, $2, $3;",
            "=r,r,r,r",
            [levels, factor, offset],
            tl.float16,
            True,
            2,
        )


@triton.jit
def _halves(pairs, BLOCK_N: tl.constexpr, INPUTS: tl.constexpr):
    """Split pairs of 16 bits `[N, word, lane, shift]`; int16 `[N, K]` in the inputs' order."""
    halves = tl.join(pairs.to(tl.int16), (pairs >> 16).to(tl.int16))
    return tl.reshape(tl.permute(halves, (0, 1, 3, 2, 4)), (BLOCK_N, INPUTS))


@triton.jit
def lanes_of(words, WORDS: tl.constexpr, TILES: tl.constexpr, BLOCK_N: tl.constexpr):
    """Words `[N, TILES, WORDS]` of consecutive tiles as `[N, words of a lane, lane]`."""
    lanes = tl.permute(tl.reshape(words, (BLOCK_N, TILES, 4, WORDS // 4)), (0, 1, 3, 2))
    return tl.reshape(lanes, (BLOCK_N, TILES * WORDS // 4, 4))


@triton.jit
def integers(
    words,
    zero,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    WIDEN: tl.constexpr,
    WORDS: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_N: tl.constexpr,
    INPUTS: tl.constexpr,
):  # fmt: skip
    """Decode words to levels: integers minus their zero points, or E4M3 numbers; all exact.

    Args:
        words: int32 `[N, TILES, WORDS]`, of TILES consecutive tiles.
        zero: float32 `[N, 1]` or scalar, the unsigned zero points of integers.
        KIND: as in `PackedWeight`.
        DTYPE: bf16 or fp16.
        WIDEN: return float32.
        WORDS: of a row of a tile.
        TILES: of a step.
        BLOCK_N: N.
        INPUTS: K.

    Returns:
        `[N, K]`.
    """
    lanes = lanes_of(words, WORDS, TILES, BLOCK_N)[:, :, :, None]
    if KIND == "nibbles":
        shifts = tl.arange(0, 4)[None, None, None, :] * 4
        # The bit that two's complement inverts is inverted back with the exponent.
        exponent: tl.constexpr = 0x43084308 if DTYPE == tl.bfloat16 else 0x64086408
        one: tl.constexpr = 128.0 if DTYPE == tl.bfloat16 else 1024.0
        pairs = ((lanes >> shifts) & 0x000F000F) ^ exponent
        levels = _halves(pairs, BLOCK_N, INPUTS).to(DTYPE, bitcast=True)
        if WIDEN:
            return levels.to(tl.float32) - (one + zero)
        else:
            ones = tl.full((BLOCK_N, INPUTS), 1.0, DTYPE)
            offset = tl.broadcast_to((-one - zero).to(DTYPE), (BLOCK_N, INPUTS))
            return _fused(levels, ones, offset, DTYPE)
    elif KIND == "e4m3":
        shifts = tl.arange(0, 2)[None, None, None, :] * 8
        pairs = lanes >> shifts
        # Exponents keep their bits; the bias of the wider format is a power of two, multiplied in
        # below. Subnormal numbers become subnormal ones.
        if DTYPE == tl.bfloat16:
            pairs = ((pairs & 0x00800080) << 8) | ((pairs & 0x007F007F) << 4)
        else:
            pairs = ((pairs & 0x00800080) << 8) | ((pairs & 0x007F007F) << 7)
        factor: tl.constexpr = 2.0**120 if DTYPE == tl.bfloat16 else 256.0
        levels = _halves(pairs, BLOCK_N, INPUTS).to(DTYPE, bitcast=True)
        if WIDEN:
            return levels.to(tl.float32) * factor
        else:
            factors = tl.full((BLOCK_N, INPUTS), factor, DTYPE)
            return _fused(levels, factors, tl.full((BLOCK_N, INPUTS), -0.0, DTYPE), DTYPE)
    else:
        shifts = tl.arange(0, 2)[None, None, None, :] * 8
        values = _halves((lanes >> shifts) & 0x00FF00FF, BLOCK_N, INPUTS)
        # 2**23 + q in float32; 8 bits do not fit the fraction of bf16.
        values = values.to(tl.int32) ^ 0x4B000080
        levels = values.to(tl.float32, bitcast=True) - (8388608.0 + zero)
        if WIDEN:
            return levels
        else:
            return levels.to(DTYPE)


@triton.jit
def scaled(
    levels,
    scale,
    EXACT: tl.constexpr,
    DTYPE: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_N: tl.constexpr,
    INPUTS: tl.constexpr,
):  # fmt: skip
    """Multiply levels `[N, K]` by float32 scales `[N]`, rounded once to DTYPE.

    EXACT: the scales are numbers of DTYPE.
    """
    if WIDEN:
        return levels * scale[:, None]
    elif EXACT:
        factors = tl.broadcast_to(scale.to(DTYPE)[:, None], (BLOCK_N, INPUTS))
        return _fused(levels, factors, tl.full((BLOCK_N, INPUTS), -0.0, DTYPE), DTYPE)
    else:
        return (levels.to(tl.float32) * scale[:, None]).to(DTYPE)


@triton.jit
def scale_of(grid, GRID: tl.constexpr):
    """Float32 scales of words of `PackedWeight.grid`."""
    if GRID == "float32":
        return grid.to(tl.float32, bitcast=True)
    elif GRID == "bfloat16":
        return (grid & -65536).to(tl.float32, bitcast=True)
    else:
        return (grid >> 16).to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)


def name_of(dtype: torch.dtype) -> str:
    """Name of a torch dtype in Triton and in `PackedWeight.grid`."""
    return str(dtype).removeprefix("torch.")
