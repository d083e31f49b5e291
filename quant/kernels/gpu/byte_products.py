"""Products of 8-bit activations with packed weights on the 8-bit tensor cores.

Bytes are multiplied as they are stored: int8 with sums in int32, E4M3 with sums in float32.
Nibbles become the high halves of int8 registers, 16 times the integer, and sums are shifted back,
which is exact. Without groups the sums of int8 cover all inputs, are exact in any order, and are
scaled once. With groups each tile of inputs is scaled and added in float32.

Blocks and splits are those of `float_products.py`.

Letters: M = tokens, N = out_features, K = in_features, G = groups per row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dequantize import lanes_of, name_of, scale_of
from .epilogue import store_output, sum_splits
from .packing import PackedWeight
from .tuning import Blocks, Workspace, byte_blocks, capability_of


@triton.jit
def _nibbles(words, WORDS: tl.constexpr, BLOCK_N: tl.constexpr, TILE: tl.constexpr):
    """16 times the integers of words `[N, WORDS]`, int8 `[N, K]`."""
    lanes = lanes_of(words, WORDS, 1, BLOCK_N)[:, :, :, None]
    low_or_high = 4 - tl.arange(0, 2)[None, None, None, :] * 4
    registers = (lanes << low_or_high) & -0x0F0F0F10  # 0xF0F0F0F0
    shifts = tl.arange(0, 4)[None, None, None, None, :] * 8
    values = (registers[:, :, :, :, None] >> shifts).to(tl.int8)
    return tl.reshape(tl.permute(values, (0, 1, 3, 2, 4)), (BLOCK_N, TILE))


@triton.jit
def _accumulate(
    x,
    words,
    grid,
    level_sums,
    columns,
    rows,
    first,
    last,
    m_size,
    n_padded,
    tiles,
    TILES_PER_GROUP: tl.constexpr,
    KIND: tl.constexpr,
    GRID: tl.constexpr,
    ZERO: tl.constexpr,
    GROUPED: tl.constexpr,
    SHIFTED: tl.constexpr,
    PROMOTE: tl.constexpr,
    TILE: tl.constexpr,
    WORDS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sum the tiles first to last of a block, `[BLOCK_N, BLOCK_M]`; float32 if GROUPED or E4M3.

    PROMOTE: add the sums of each tile in float32, in as many registers again; Hopper's tensor cores
    sum E4M3 products with about 14 bits.
    SHIFTED: zero points differ from the midpoint; `level_sums` has the sums of levels, int32
    `[tiles, M]`.
    """
    SUMS: tl.constexpr = tl.float32 if KIND == "e4m3" else tl.int32
    MIDPOINT: tl.constexpr = 8 if KIND == "nibbles" else 128
    PROMOTED: tl.constexpr = TILE if PROMOTE and KIND == "e4m3" else None
    inputs = tl.arange(0, TILE)
    # Offsets into activations of real models exceed int32.
    tokens = x + rows.to(tl.int64)[None, :] * (tiles * TILE) + inputs[:, None]
    valid = (rows < m_size)[None, :]
    if KIND == "nibbles":
        packed = words + columns[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    else:
        packed = words + columns[:, None] * TILE + inputs[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32 if GROUPED else SUMS)
    for t in range(first, last):
        values = tl.load(tokens + t * TILE, mask=valid, other=0.0)
        if KIND == "nibbles":
            block = tl.load(packed + t * (n_padded * WORDS))
            weights = _nibbles(block, WORDS, BLOCK_N, TILE)
        else:
            weights = tl.load(packed + t * (n_padded * TILE))
        if GROUPED:
            sums = tl.dot(weights, values, out_dtype=SUMS, max_num_imprecise_acc=PROMOTED)
            cells = tl.load(grid + (t // TILES_PER_GROUP) * n_padded + columns)
        else:
            sums = tl.dot(weights, values, total, out_dtype=SUMS, max_num_imprecise_acc=PROMOTED)
        if GROUPED:
            if KIND == "nibbles":
                sums = sums >> 4
            if SHIFTED:
                offsets = _offsets(cells, ZERO, MIDPOINT, BLOCK_N)
                added = tl.load(level_sums + t * m_size + rows, mask=rows < m_size, other=0)
                sums -= offsets[:, None] * added[None, :]
            total += sums.to(tl.float32) * scale_of(cells, GRID)[:, None]
        else:
            total = sums
    if KIND == "nibbles" and not GROUPED:
        total = total >> 4
    return total


@triton.jit
def _offsets(cells, ZERO: tl.constexpr, MIDPOINT: tl.constexpr, BLOCK_N: tl.constexpr):
    """Zero points relative to the stored zero, int32 `[N]`."""
    if ZERO is None:
        return (cells & 0xFF) - MIDPOINT
    else:
        return tl.full((BLOCK_N,), ZERO - MIDPOINT, tl.int32)


@triton.jit
def _finish(
    total, y, token_scales, grid, level_sums, bias, columns, rows, m_size, n_size,
    KIND: tl.constexpr, GRID: tl.constexpr, ZERO: tl.constexpr, GROUPED: tl.constexpr,
    SHIFTED: tl.constexpr, BIAS: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Scale complete sums and store them; without groups the scales of rows are applied here."""
    MIDPOINT: tl.constexpr = 8 if KIND == "nibbles" else 128
    if GROUPED:
        result = total
    else:
        cells = tl.load(grid + columns)
        if SHIFTED:
            added = tl.load(level_sums + rows, mask=rows < m_size, other=0)
            total -= _offsets(cells, ZERO, MIDPOINT, BLOCK_N)[:, None] * added[None, :]
        result = total.to(tl.float32) * scale_of(cells, GRID)[:, None]
    store_output(result, y, token_scales, bias, columns, rows, m_size, n_size, True, BIAS)


@triton.jit(do_not_specialize=["m_size"])
def few_tokens(
    x, words, grid, token_scales, level_sums, bias, y, partials, counters,
    m_size, n_size, n_padded, tiles, tiles_per_split,
    TILES_PER_GROUP: tl.constexpr, KIND: tl.constexpr, GRID: tl.constexpr, ZERO: tl.constexpr,
    GROUPED: tl.constexpr, SHIFTED: tl.constexpr, BIAS: tl.constexpr, SPLIT: tl.constexpr,
    TILE: tl.constexpr, WORDS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute a block of the output, or the sums of one split of its inputs."""
    n_block, split, m_block = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    columns = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
    first = split * tiles_per_split
    last = tl.minimum(first + tiles_per_split, tiles)
    total = _accumulate(
        x, words, grid, level_sums, columns, rows, first, last, m_size, n_padded, tiles,
        TILES_PER_GROUP, KIND, GRID, ZERO, GROUPED, SHIFTED, True, TILE, WORDS, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    complete = True
    if SPLIT:
        block = m_block * tl.num_programs(0) + n_block
        total, complete = sum_splits(
            total, partials, counters, split, tl.num_programs(1), block, columns, rows, m_size,
            n_padded,
        )  # fmt: skip
    if complete:
        _finish(
            total, y, token_scales, grid, level_sums, bias, columns, rows, m_size, n_size, KIND,
            GRID, ZERO, GROUPED, SHIFTED, BIAS, BLOCK_N,
        )  # fmt: skip


@triton.jit(do_not_specialize=["m_size"])
def many_tokens(
    x, words, grid, token_scales, level_sums, bias, y,
    m_size, n_size, n_padded, tiles,
    TILES_PER_GROUP: tl.constexpr, KIND: tl.constexpr, GRID: tl.constexpr, ZERO: tl.constexpr,
    GROUPED: tl.constexpr, SHIFTED: tl.constexpr, BIAS: tl.constexpr, TILE: tl.constexpr,
    WORDS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """Compute blocks of the output, each program every so many; see `float_products.py`."""
    m_blocks, n_blocks = tl.cdiv(m_size, BLOCK_M), n_padded // BLOCK_N
    for block in range(tl.program_id(0), m_blocks * n_blocks, tl.num_programs(0)):
        m_block, n_block = tl.swizzle2d(
            block // n_blocks, block % n_blocks, m_blocks, n_blocks, BAND
        )
        columns = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
        rows = m_block * BLOCK_M + tl.arange(0, BLOCK_M)
        total = _accumulate(
            x, words, grid, level_sums, columns, rows, 0, tiles, m_size, n_padded, tiles,
            TILES_PER_GROUP, KIND, GRID, ZERO, GROUPED, SHIFTED, False, TILE, WORDS, BLOCK_M,
            BLOCK_N,
        )  # fmt: skip
        _finish(
            total, y, token_scales, grid, level_sums, bias, columns, rows, m_size, n_size, KIND,
            GRID, ZERO, GROUPED, SHIFTED, BIAS, BLOCK_N,
        )  # fmt: skip


def byte_product(
    levels: Tensor,
    token_scales: Tensor,
    weight: PackedWeight,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    blocks: Blocks | None = None,
) -> Tensor:
    """Compute `reference.integer_linear` of quantized tokens, or the same with E4M3 levels.

    Args:
        levels: int8 or float8_e4m3fn `[M, K]`, contiguous, in the order of the packed words
            (`token_quantization.py`).
        token_scales: float32 `[M]`.
        weight: packed; `e4m3` with levels in E4M3.
        dtype: of the output.
        bias: `[N]` or None.
        blocks: block sizes; None for those of `tuning`.

    Returns:
        `[M, N]`. Sums of integers are exact; with one group per row the result is that of the
        reference but for the rounding of the scales' product. With groups, tiles are added in the
        order of the inputs within a split, and splits in their order. Sums of E4M3 products are
        those of the tensor cores: float32, but on Hopper with many tokens about 14 bits relative
        to the largest partial sum, 2**-9 of what rounding to E4M3 costs.
    """
    m, n = len(levels), weight.out_features
    y = torch.empty((m, n), dtype=dtype, device=levels.device)
    if not m:
        return y
    tiles, n_padded, words = weight.words.shape
    grouped = weight.groups > 1
    chosen = blocks or byte_blocks(m, grouped, capability_of(levels.device))
    shifted = weight.kind != "e4m3" and weight.zero != weight.midpoint
    unused = weight.grid  # any pointer; not read
    level_sums = unused
    if shifted:
        per_row = levels.reshape(m, tiles if grouped else 1, -1)
        level_sums = per_row.sum(-1, dtype=torch.int32).t().contiguous()
    stored = {"nibbles": torch.int32, "bytes": torch.int8, "e4m3": torch.float8_e4m3fn}
    operands = (levels, weight.words.view(stored[weight.kind]), weight.grid)
    ends = (token_scales, level_sums, unused if bias is None else bias, y)
    meta = {
        "TILES_PER_GROUP": weight.tiles_per_group,
        "KIND": weight.kind,
        "GRID": name_of(weight.scale_dtype),
        "ZERO": weight.zero,
        "GROUPED": grouped,
        "SHIFTED": shifted,
        "BIAS": bias is not None,
        "TILE": weight.tile,
        "WORDS": words,
        "BLOCK_M": chosen.m,
        "BLOCK_N": chosen.n,
        "num_warps": chosen.warps,
        "num_stages": chosen.stages,
        "enable_fp_fusion": False,  # a product with a bias is rounded twice, as in the reference
    }
    if chosen.persistent:
        many_tokens[(chosen.programs(m, n_padded, levels.device),)](
            *operands, *ends, m, n, n_padded, tiles,
            BAND=chosen.band, **meta,
        )  # fmt: skip
        return y
    sums = torch.float32 if grouped or weight.kind == "e4m3" else torch.int32
    space = Workspace.of(chosen, m, tiles, n_padded, sums, levels.device)
    few_tokens[space.programs](
        *operands, *ends, space.partials, space.counters, m, n, n_padded, tiles,
        space.steps_per_split, SPLIT=space.splits > 1, **meta,
    )  # fmt: skip
    return y
