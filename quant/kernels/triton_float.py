"""Weight-only products on a GPU: weights are dequantized in registers, before the tensor cores.

The weight has the layout of `reference.py`: uint8 rows along the inputs, two values per byte up to
four bits. Each program computes a tile of the output and, with few tokens, one of several splits of
the inputs (split-K). The splits are summed afterwards in a fixed order instead of by atomic
additions, so that results are deterministic.

Letters: M = tokens, N = out_features, K = in_features, G = groups per row.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_tuning import Blocks, float_blocks

# Triton's interpreter stores bf16 as integers and would multiply those. Float32 products of bf16
# values are exact, so that widening changes nothing.
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
    k_split,
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
    split = tl.program_id(2)
    valid_rows, valid_columns = rows < m_size, columns < n_size
    # Offsets into weights and inputs of real models exceed int32.
    wide_rows, wide_columns = rows.to(tl.int64), columns.to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    start = split * k_split
    stop = tl.minimum(start + k_split, k_size)
    for k in range(start, stop, BLOCK_K):
        inputs = k + tl.arange(0, BLOCK_K)
        valid_inputs = inputs < stop
        tokens = tl.load(
            x + wide_rows[:, None] * x_stride + inputs[None, :],
            mask=valid_rows[:, None] & valid_inputs[None, :],
            other=0.0,
        )
        if NIBBLES:
            offsets = wide_columns[:, None] * (k_size // 2) + (inputs // 2)[None, :]
            pairs = tl.load(
                packed + offsets, mask=valid_columns[:, None] & valid_inputs[None, :], other=0
            )
            values = (pairs >> ((inputs % 2) * 4)[None, :].to(tl.uint8)) & 15
        else:
            offsets = wide_columns[:, None] * k_size + inputs[None, :]
            values = tl.load(
                packed + offsets, mask=valid_columns[:, None] & valid_inputs[None, :], other=0
            )
        # BLOCK_K divides the group size (`Blocks.within`), so a block has one scale per column.
        grid = wide_columns * groups + k // group
        scale = tl.load(scales + grid, mask=valid_columns, other=0.0).to(tl.float32)
        zero = tl.load(zeros + grid, mask=valid_columns, other=0).to(tl.float32)
        weights = (values.to(tl.float32) - zero[:, None]) * scale[:, None]
        # Rounded to the dtype of x, as the reference does.
        rounded = tl.trans(weights).to(tokens.dtype)
        if WIDEN:
            total = tl.dot(tokens.to(tl.float32), rounded.to(tl.float32), total)
        else:
            total = tl.dot(tokens, rounded, total, input_precision="ieee")
    if BIAS:
        shift = tl.load(bias + columns, mask=valid_columns, other=0.0).to(tl.float32)
        total += tl.where(split == 0, shift, 0.0)[None, :]
    out = y + split.to(tl.int64) * m_size * n_size + wide_rows[:, None] * n_size + columns[None, :]
    tl.store(out, total.to(y.dtype.element_ty), mask=valid_rows[:, None] & valid_columns[None, :])


def weight_only_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    bits: int,
    bias: Tensor | None = None,
    blocks: Blocks | None = None,
) -> Tensor:
    """Compute `reference.weight_only_linear`: `x @ W' + bias`, W rounded to the dtype of `x`.

    Args:
        x: `[..., K]` float.
        packed: from `reference.prepack`.
        scales: float `[N, G]`, contiguous.
        zero_points: uint8 `[N, G]`, contiguous.
        bits: 2 to 8.
        bias: `[N]` or None.
        blocks: block sizes; None for those of `triton_tuning`.

    Returns:
        `[..., N]` in the dtype of `x`.
    """
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    (m, k), (n, groups) = rows.shape, scales.shape
    group = k // groups
    chosen = (blocks or float_blocks(m, n, k)).within(group)
    k_split = chosen.split_size(k)
    splits = triton.cdiv(k, k_split)
    y = x.new_empty((splits, m, n), dtype=x.dtype if splits == 1 else torch.float32)
    if m:
        _float_tile[triton.cdiv(m, chosen.m), triton.cdiv(n, chosen.n), splits](
            rows,
            packed,
            scales,
            zero_points,
            scales if bias is None else bias,  # any pointer; not read without a bias
            y,
            m,
            n,
            k,
            k_split,
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
    out = y[0] if splits == 1 else y.sum(0).to(x.dtype)
    return out.reshape(*x.shape[:-1], n)
