"""Ends of the product kernels: sums of split inputs in a fixed order, scales, bias and output.

Letters: N = rows of a block (output features), M = its columns (tokens), S = splits of the inputs.
"""

import triton
import triton.language as tl


@triton.jit
def store_output(
    total,
    y,
    token_scales,
    bias,
    columns,
    rows,
    m_size,
    n_size,
    TOKEN_SCALES: tl.constexpr,
    BIAS: tl.constexpr,
):  # fmt: skip
    """Apply scales and bias, and store sums `[N, M]` as `[M, N]` in the dtype of `y`."""
    valid_rows, valid_columns = rows < m_size, columns < n_size
    result = total.to(tl.float32)
    if TOKEN_SCALES:
        result *= tl.load(token_scales + rows, mask=valid_rows, other=0.0)[None, :]
    if BIAS:
        shift = tl.load(bias + columns, mask=valid_columns, other=0.0).to(tl.float32)
        result += shift[:, None]
    # Offsets into outputs of real models exceed int32.
    out = y + rows.to(tl.int64)[None, :] * n_size + columns[:, None]
    tl.store(out, result.to(y.dtype.element_ty), mask=valid_columns[:, None] & valid_rows[None, :])


@triton.jit
def sum_splits(
    total,
    partials,
    counters,
    split,
    splits,
    tile,
    columns,
    rows,
    m_size,
    n_padded,
):  # fmt: skip
    """Exchange the sums of all splits of a block; the last program to arrive adds them in order.

    The order of the additions is that of the splits whichever program arrives last, so that results
    are deterministic. Only the counter is atomic.

    Args:
        total: `[N, M]`.
        partials: `[S, m_size, n_padded]`, dtype of `total`.
        counters: int32, one per block; zero before and after.
        split: of this program.
        splits: S.
        tile: number of the block.
        columns: output features of the block.
        rows: tokens of the block.
        m_size: tokens.
        n_padded: output features, padded.

    Returns:
        `[N, M]`, complete if the second value is true, and whether this program is the last.
    """
    valid = (rows < m_size)[None, :] & (columns < n_padded)[:, None]
    offsets = rows.to(tl.int64)[None, :] * n_padded + columns[:, None]
    stride = m_size.to(tl.int64) * n_padded
    tl.store(partials + split * stride + offsets, total, mask=valid)
    # All threads have stored before one of them releases the counter.
    tl.debug_barrier()
    last = tl.atomic_add(counters + tile, 1, sem="acq_rel") == splits - 1
    if last:
        total = tl.zeros_like(total)
        for part in range(0, splits):
            # Past the first-level cache, which is not coherent between multiprocessors.
            total += tl.load(
                partials + part * stride + offsets, mask=valid, other=0, cache_modifier=".cg"
            )
        tl.atomic_xchg(counters + tile, 0)
    return total, last
