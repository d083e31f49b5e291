"""Products with int8 activations on a GPU, on the int8 tensor cores.

Two kernels: one quantizes each token as `reference.quantize_activations` does, the other multiplies
integers and applies the scales. The sums of a group are exact; groups are added in order, and the
token's scale and the bias are applied last, as in `reference.integer_linear`.

Letters: M = tokens, N = out_features, K = in_features, G = groups per row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_tuning import Blocks, integer_blocks


@triton.jit
def _quantize_token(
    x,
    input_scale,
    levels,
    scales,
    k_size,
    x_stride,
    STATIC: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    inputs = tl.arange(0, BLOCK)
    valid = inputs < k_size
    values = tl.load(x + row * x_stride + inputs, mask=valid, other=0.0).to(tl.float32)
    if STATIC:
        scale = tl.load(input_scale).to(tl.float32)
    else:
        magnitudes = tl.abs(values)
        # Compared as integers, in which NaN is larger than any number: the scale becomes NaN.
        largest = tl.max(magnitudes.to(tl.int32, bitcast=True), axis=0)
        scale = tl.div_rn(largest.to(tl.float32, bitcast=True), 127.0)
        scale = tl.where(scale == 0.0, 1.0, scale)
    level = tl.div_rn(values, tl.zeros_like(values) + scale)
    level = tl.where(level == level, level, 0.0)  # NaN to 0
    level = tl.minimum(tl.maximum(level, -128.0), 127.0)
    # In floats of about 1.5 * 2**23 the last bit is worth 1: adding and subtracting that number
    # rounds to nearest, ties to even.
    level = (level + 12582912.0) - 12582912.0
    tl.store(levels + row * k_size + inputs, level.to(tl.int8), mask=valid)
    tl.store(scales + row, scale)


@triton.jit
def _integer_tile(
    levels,
    token_scales,
    packed,
    scales,
    zeros,
    bias,
    y,
    m_size,
    n_size,
    k_size,
    group,
    groups,
    NIBBLES: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    valid_rows, valid_columns = rows < m_size, columns < n_size
    wide_rows, wide_columns = rows.to(tl.int64), columns.to(tl.int64)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for g in range(0, groups):
        sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
        level_sums = tl.zeros((BLOCK_M,), dtype=tl.int32)
        for k in range(g * group, (g + 1) * group, BLOCK_K):
            inputs = k + tl.arange(0, BLOCK_K)
            tokens = tl.load(
                levels + wide_rows[:, None] * k_size + inputs[None, :],
                mask=valid_rows[:, None],
                other=0,
            )
            if NIBBLES:
                offsets = wide_columns[:, None] * (k_size // 2) + (inputs // 2)[None, :]
                pairs = tl.load(packed + offsets, mask=valid_columns[:, None], other=0)
                weights = ((pairs >> ((inputs % 2) * 4)[None, :].to(tl.uint8)) & 15).to(tl.int8)
            else:
                # Tensor cores multiply signed bytes: 128 is subtracted from weight and zero point.
                offsets = wide_columns[:, None] * k_size + inputs[None, :]
                raw = tl.load(packed + offsets, mask=valid_columns[:, None], other=0)
                weights = (raw.to(tl.int16) - 128).to(tl.int8)
            sums = tl.dot(tokens, tl.trans(weights), sums, out_dtype=tl.int32)
            level_sums += tl.sum(tokens.to(tl.int32), axis=1)
        grid = wide_columns * groups + g
        scale = tl.load(scales + grid, mask=valid_columns, other=0.0).to(tl.float32)
        zero = tl.load(zeros + grid, mask=valid_columns, other=0).to(tl.int32)
        if not NIBBLES:
            zero -= 128
        # sum(x (w - z)) = sum(x w) - z sum(x), exact in int32.
        exact = sums - level_sums[:, None] * zero[None, :]
        total += exact.to(tl.float32) * scale[None, :]
    total *= tl.load(token_scales + rows, mask=valid_rows, other=0.0)[:, None]
    if BIAS:
        total += tl.load(bias + columns, mask=valid_columns, other=0.0).to(tl.float32)[None, :]
    out = y + wide_rows[:, None] * n_size + columns[None, :]
    tl.store(out, total.to(y.dtype.element_ty), mask=valid_rows[:, None] & valid_columns[None, :])


def quantize_activations(x: Tensor, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Quantize tokens to int8; see `reference.quantize_activations`.

    Args:
        x: `[M, K]` float.
        scale: float32 scalar for all tokens, or None for one per token.

    Returns:
        int8 `[M, K]` and float32 `[M]`.
    """
    m, k = x.shape
    levels = torch.empty((m, k), dtype=torch.int8, device=x.device)
    scales = torch.empty(m, dtype=torch.float32, device=x.device)
    if m:
        _quantize_token[(m,)](
            x,
            scales if scale is None else scale,  # any pointer; not read without a given scale
            levels,
            scales,
            k,
            x.stride(0),
            STATIC=scale is not None,
            BLOCK=triton.next_power_of_2(k),
        )
    return levels, scales


def integer_linear(
    x: Tensor,
    packed: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    bits: int,
    bias: Tensor | None = None,
    input_scale: Tensor | None = None,
    blocks: Blocks | None = None,
) -> Tensor:
    """Compute `reference.integer_linear`: `x @ W' + bias` with the input quantized to int8.

    Args:
        x: `[..., K]` float.
        packed: from `reference.prepack`.
        scales: float `[N, G]`, contiguous.
        zero_points: uint8 `[N, G]`, contiguous.
        bits: 2 to 8.
        bias: `[N]` or None.
        input_scale: float scalar, or None for one scale per token.
        blocks: block sizes; None for those of `triton_tuning`.

    Returns:
        `[..., N]` in the dtype of `x`.
    """
    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(-1) != 1:
        rows = rows.contiguous()
    (m, k), (n, groups) = rows.shape, scales.shape
    levels, token_scales = quantize_activations(rows, input_scale)
    chosen = (blocks or integer_blocks(m, n, k)).within(k // groups)
    y = x.new_empty((m, n))
    if m:
        _integer_tile[triton.cdiv(m, chosen.m), triton.cdiv(n, chosen.n)](
            levels,
            token_scales,
            packed,
            scales,
            zero_points,
            scales if bias is None else bias,  # any pointer; not read without a bias
            y,
            m,
            n,
            k,
            k // groups,
            groups,
            NIBBLES=bits <= 4,
            BIAS=bias is not None,
            BLOCK_M=chosen.m,
            BLOCK_N=chosen.n,
            BLOCK_K=chosen.k,
            num_warps=chosen.warps,
            num_stages=chosen.stages,
        )
    return y.reshape(*x.shape[:-1], n)
