"""Weight-only products on a GPU: integers become floats on their way to the tensor cores.

The weight lies as in `reference.py`: uint8 rows along the inputs, two values to a byte up to four
bits. Each program takes a tile of the output and, with few tokens, one of several parts of the
inputs; the parts are added afterwards in a fixed order, so results do not vary from run to run.

Letters: M = tokens, N = out_features, K = in_features, G = groups per row.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_tuning import Blocks, float_blocks

# Triton's interpreter keeps bf16 as bits and multiplies those; float32 holds the same products.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _float_tile(
    x,
    packed,
    scales,
    zeros,
    bias,
    y,
    m_size,
    n_size,
    k_size,
    k_part,
    group,
    groups,
    x_stride,
    NIBBLES: tl.constexpr,
    BIAS: tl.constexpr,
    WIDEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    known_rows, known_columns = rows < m_size, columns < n_size
    # Offsets into weights and inputs of real models pass 2**31.
    wide_rows, wide_columns = rows.to(tl.int64), columns.to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    start = part * k_part
    stop = tl.minimum(start + k_part, k_size)
    for k in range(start, stop, BLOCK_K):
        inputs = k + tl.arange(0, BLOCK_K)
        inside = inputs < stop
        held = known_columns[:, None] & inside[None, :]
        tokens = tl.load(
            x + wide_rows[:, None] * x_stride + inputs[None, :],
            mask=known_rows[:, None] & inside[None, :],
            other=0.0,
        )
        if NIBBLES:
            bytes_at = wide_columns[:, None] * (k_size // 2) + (inputs // 2)[None, :]
            both = tl.load(
                packed + bytes_at, mask=known_columns[:, None] & inside[None, :], other=0
            )
            values = (both >> ((inputs % 2) * 4)[None, :].to(tl.uint8)) & 15
        else:
            bytes_at = wide_columns[:, None] * k_size + inputs[None, :]
            values = tl.load(packed + bytes_at, mask=held, other=0)
        # A block never crosses a group: the launcher sees to it.
        grid = wide_columns * groups + k // group
        scale = tl.load(scales + grid, mask=known_columns, other=0.0).to(tl.float32)
        zero = tl.load(zeros + grid, mask=known_columns, other=0).to(tl.float32)
        weights = (values.to(tl.float32) - zero[:, None]) * scale[:, None]
        rounded = tl.trans(weights).to(tokens.dtype)
        if WIDEN:
            total = tl.dot(tokens.to(tl.float32), rounded.to(tl.float32), total)
        else:
            total = tl.dot(tokens, rounded, total, input_precision="ieee")
    if BIAS:
        shift = tl.load(bias + columns, mask=known_columns, other=0.0).to(tl.float32)
        total += tl.where(part == 0, shift, 0.0)[None, :]
    out = y + part.to(tl.int64) * m_size * n_size + wide_rows[:, None] * n_size + columns[None, :]
    tl.store(out, total.to(y.dtype.element_ty), mask=known_rows[:, None] & known_columns[None, :])


def weight_only_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    bits: int,
    bias: Tensor | None = None,
    blocks: Blocks | None = None,
) -> Tensor:
    """``x @ W' + bias`` with W dequantized to the dtype of `x`; see `reference.weight_only_linear`.

    Args:
        x: ``[..., K]`` float.
        packed: from `reference.prepack`.
        scales: float ``[N, G]``, contiguous.
        zero_points: uint8 ``[N, G]``, contiguous.
        bits: 2 to 8.
        bias: ``[N]`` or None.
        blocks: how the work is cut; None takes the table's.
    """
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    (m, k), (n, groups) = rows.shape, scales.shape
    group = k // groups
    chosen = (blocks or float_blocks(m, n, k)).within(group)
    k_part = chosen.part(k)
    parts = triton.cdiv(k, k_part)
    y = x.new_empty((parts, m, n), dtype=x.dtype if parts == 1 else torch.float32)
    if m:
        _float_tile[triton.cdiv(m, chosen.m), triton.cdiv(n, chosen.n), parts](
            rows,
            packed,
            scales,
            zero_points,
            scales if bias is None else bias,
            y,
            m,
            n,
            k,
            k_part,
            group,
            groups,
            rows.stride(0),
            NIBBLES=bits <= 4,
            BIAS=bias is not None,
            WIDEN=INTERPRETED,
            BLOCK_M=chosen.m,
            BLOCK_N=chosen.n,
            BLOCK_K=chosen.k,
            num_warps=chosen.warps,
            num_stages=chosen.stages,
        )
    out = y[0] if parts == 1 else y.sum(0).to(x.dtype)
    return out.reshape(*x.shape[:-1], n)
