"""Products of 16-bit activations with packed weights, dequantized before the tensor cores.

A block computes the transposed output: the weights are the left operand, because on Hopper the
left operand can come from registers, and because few tokens fill the narrow side of an instruction.

With few tokens a product is bound by reading the weights: several programs share the inputs of a
block (split-K), levels are multiplied unscaled, which is exact in 16 bits, and the sums of each
step are scaled. With many tokens a product is bound by the tensor cores: as many programs as run at
a time walk over all blocks, and weights are scaled and rounded to the dtype of the activations, as
the reference does.

Letters: M = tokens, N = out_features, K = in_features, G = groups per row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dequantize import INTERPRETED, integers, name_of, scale_of, scaled
from .epilogue import store_output, sum_splits
from .packing import PackedWeight
from .tuning import Blocks, Workspace, capability_of, float_blocks


@triton.jit
def _accumulate(
    x,
    words,
    grid,
    columns,
    rows,
    first,
    last,
    m_size,
    n_padded,
    x_stride,
    STEPS_PER_GROUP: tl.constexpr,
    KIND: tl.constexpr,
    GRID: tl.constexpr,
    ZERO: tl.constexpr,
    EXACT: tl.constexpr,
    SCALE_SUMS: tl.constexpr,
    WIDEN: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sum the steps first to last of a block, TILES tiles each; float32 `[BLOCK_N, BLOCK_M]`."""
    DTYPE: tl.constexpr = tl.bfloat16 if x.dtype.element_ty == tl.float32 else x.dtype.element_ty
    INPUTS: tl.constexpr = TILES * TILE
    inputs = tl.arange(0, INPUTS)
    # Offsets into activations of real models exceed int32.
    tokens = x + rows.to(tl.int64)[None, :] * x_stride + inputs[:, None]
    valid = (rows < m_size)[None, :]
    tile_words = n_padded * WORDS
    packed = words + columns[:, None, None] * WORDS + tl.arange(0, WORDS)[None, None, :]
    packed += tl.arange(0, TILES)[None, :, None] * tile_words
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for step in range(first, last):
        block = tl.load(packed + step * (TILES * tile_words))
        values = tl.load(tokens + step * INPUTS, mask=valid, other=0.0)
        group = step // STEPS_PER_GROUP if STEPS_PER_GROUP else 0
        cells = tl.load(grid + group * n_padded + columns)
        if ZERO is None:
            zero = (cells & 0xFF).to(tl.float32)[:, None]
        else:
            zero = tl.full((BLOCK_N, 1), ZERO, tl.float32)
        scale = scale_of(cells, GRID)
        levels = integers(block, zero, KIND, DTYPE, WIDEN, WORDS, TILES, BLOCK_N, INPUTS)
        if SCALE_SUMS:
            if WIDEN:
                sums = tl.dot(levels, values.to(tl.float32), input_precision="ieee")
            else:
                sums = tl.dot(levels, values)
            total += sums * scale[:, None]
        else:
            weights = scaled(levels, scale, EXACT, DTYPE, WIDEN, BLOCK_N, INPUTS)
            if WIDEN:
                weights = weights.to(x.dtype.element_ty).to(tl.float32)
                total = tl.dot(weights, values.to(tl.float32), total, input_precision="ieee")
            else:
                total = tl.dot(weights, values, total)
    return total


@triton.jit(do_not_specialize=["m_size"])
def few_tokens(
    x,
    words,
    grid,
    token_scales,
    bias,
    y,
    partials,
    counters,
    m_size,
    n_size,
    n_padded,
    steps,
    steps_per_split,
    x_stride,
    STEPS_PER_GROUP: tl.constexpr,
    KIND: tl.constexpr,
    GRID: tl.constexpr,
    ZERO: tl.constexpr,
    TOKEN_SCALES: tl.constexpr,
    BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    WIDEN: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute a block of the output, or the sums of one split of its inputs."""
    n_block, split, m_block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    first = split * steps_per_split
    last = tl.minimum(first + steps_per_split, steps)
    total = _accumulate(
        x, words, grid, columns, rows, first, last, m_size, n_padded, x_stride,
        STEPS_PER_GROUP, KIND, GRID, ZERO, True, True, WIDEN, TILES, TILE, WORDS, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    complete = True
    if SPLIT:
        tile = m_block * tl.num_programs(0) + n_block
        total, complete = sum_splits(
            total, partials, counters, split, tl.num_programs(1), tile, columns, rows, m_size,
            n_padded,
        )  # fmt: skip
    if complete:
        store_output(
            total, y, token_scales, bias, columns, rows, m_size, n_size, TOKEN_SCALES, BIAS,
        )  # fmt: skip


@triton.jit(do_not_specialize=["m_size"])
def many_tokens(
    x,
    words,
    grid,
    token_scales,
    bias,
    y,
    m_size,
    n_size,
    n_padded,
    steps,
    x_stride,
    STEPS_PER_GROUP: tl.constexpr,
    KIND: tl.constexpr,
    GRID: tl.constexpr,
    ZERO: tl.constexpr,
    EXACT: tl.constexpr,
    TOKEN_SCALES: tl.constexpr,
    BIAS: tl.constexpr,
    WIDEN: tl.constexpr,
    TILES: tl.constexpr,
    TILE: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BAND: tl.constexpr,
):  # fmt: skip
    """Compute blocks of the output, each program every so many.

    Consecutive blocks share their tokens in bands of BAND blocks, which stay in the L2 cache.
    """
    m_blocks, n_blocks = tl.cdiv(m_size, BLOCK_M), n_padded // BLOCK_N
    for block in range(tl.program_id(0), m_blocks * n_blocks, tl.num_programs(0)):
        m_block, n_block = tl.swizzle2d(
            block // n_blocks, block % n_blocks, m_blocks, n_blocks, BAND
        )
        columns = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
        rows = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
        total = _accumulate(
            x, words, grid, columns, rows, 0, steps, m_size, n_padded, x_stride,
            STEPS_PER_GROUP, KIND, GRID, ZERO, EXACT, False, WIDEN, TILES, TILE, WORDS, BLOCK_M,
            BLOCK_N,
        )  # fmt: skip
        store_output(
            total, y, token_scales, bias, columns, rows, m_size, n_size, TOKEN_SCALES, BIAS,
        )  # fmt: skip


def float_product(
    x: Tensor,
    weight: PackedWeight,
    bias: Tensor | None = None,
    token_scales: Tensor | None = None,
    dtype: torch.dtype | None = None,
    blocks: Blocks | None = None,
) -> Tensor:
    """Compute `x @ W' + bias` with W dequantized, as `reference.weight_only_linear`.

    Args:
        x: float `[M, K]`, its rows contiguous.
        weight: packed.
        bias: `[N]` or None.
        token_scales: float32 `[M]` that multiply the sums, or None.
        dtype: of the output; None for that of `x`.
        blocks: block sizes; None for those of `tuning`.

    Returns:
        `[M, N]`. With few tokens, levels are summed before they are scaled, in float32; the
        reference rounds each scaled weight to the dtype of `x`, a relative error of up to 2**-9 in
        bf16 and 2**-12 in fp16. With many tokens only the order of summation differs.
    """
    m, n = len(x), weight.out_features
    y = x.new_empty((m, n), dtype=dtype or x.dtype)
    if not m:
        return y
    chosen = blocks or float_blocks(m, weight.kind, capability_of(x.device))
    all_tiles, n_padded, words = weight.words.shape
    tiles = chosen.tiles_per_step(weight)
    steps = all_tiles // tiles
    unused = weight.grid  # any pointer; not read
    operands = (x, weight.words, weight.grid)
    ends = (unused if token_scales is None else token_scales, unused if bias is None else bias, y)
    meta = {
        "STEPS_PER_GROUP": weight.tiles_per_group // tiles if weight.groups > 1 else 0,
        "KIND": weight.kind,
        "GRID": name_of(weight.scale_dtype),
        "ZERO": weight.zero,
        "TOKEN_SCALES": token_scales is not None,
        "BIAS": bias is not None,
        "WIDEN": INTERPRETED or x.dtype == torch.float32,
        "TILES": tiles,
        "TILE": weight.tile,
        "WORDS": words,
        "BLOCK_M": chosen.m,
        "BLOCK_N": chosen.n,
        "num_warps": chosen.warps,
        "num_stages": chosen.stages,
        "enable_fp_fusion": True,
    }
    if chosen.persistent:
        many_tokens[(chosen.programs(m, n_padded, x.device),)](
            *operands, *ends, m, n, n_padded, steps, x.stride(0),
            EXACT=x.dtype in weight.exact_dtypes, BAND=chosen.band, **meta,
        )  # fmt: skip
        return y
    space = Workspace.of(chosen, m, steps, n_padded, torch.float32, x.device)
    few_tokens[space.programs](
        *operands, *ends, space.partials, space.counters, m, n, n_padded, steps,
        space.steps_per_split, x.stride(0),
        SPLIT=space.splits > 1, **meta,
    )  # fmt: skip
    return y
