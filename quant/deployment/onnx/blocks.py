"""Encoding of integer weights in blocks of input features, without rounding.

Format: the operators MatMulNBits and GatherBlockQuantized of the domain com.microsoft, as described
in onnxruntime's docs/ContribOperators.md.

Letters: N output features, K input features, B blocks of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from ...methods.affine import QuantizedWeight
from ...recipe.scheme import QuantScheme

STORED_BITS = {2: 2, 3: 4, 4: 4, 5: 8, 6: 8, 7: 8, 8: 8}
"""Bits of a stored integer by those of the scheme; the CPU kernels of MatMulNBits read 2, 4, 8."""
SMALLEST_BLOCK, LARGEST_BLOCK, ROW_BLOCK = 16, 256, 128
"""Allowed block sizes, and that of rows with a single scale; all are powers of two."""


@dataclass(frozen=True)
class BlockWeight:
    """A weight as MatMulNBits reads it."""

    bits: int
    block_size: int
    codes: Tensor
    """uint8 [N, B, block_size * bits / 8], low bits first; the last block is padded with zeros."""
    scales: Tensor
    """float32 [N, B]."""
    zero_points: Tensor
    """uint8 [N, ceil(B * bits / 8)], low bits first."""
    has_midpoints: bool
    """Whether all zero points are 2**(bits - 1)."""


def choose_block_size(scheme: QuantScheme, in_features: int) -> int:
    """Choose the number of input features that share a stored scale.

    Args:
        scheme: of the layer.
        in_features: K.

    Returns:
        A power of two that divides the width of a group. A row with a single scale may end with a
        shorter block.

    Raises:
        ValueError: no power of two from 16 divides the width of a group.
    """
    width = scheme.width(in_features)
    if width == in_features:
        return ROW_BLOCK
    largest = width & -width
    if largest < SMALLEST_BLOCK:
        raise ValueError(
            f"groups of {width} input features; allowed: multiples of {SMALLEST_BLOCK}, or one "
            "scale per row; quantize with another group_size"
        )
    return min(largest, LARGEST_BLOCK)


def encode_blocks(weight: QuantizedWeight, *, least_bits: int = 2) -> BlockWeight:
    """Encode a weight; integers, zero points and scales are those of the weight.

    Args:
        weight: to encode.
        least_bits: smallest width of a stored integer that the operator reads.

    Raises:
        ValueError: its groups are not consecutive, or see `choose_block_size`.
    """
    if weight.group_index is not None:
        raise ValueError(
            "its groups are not consecutive input features (act-order); quantize with static groups"
        )
    bits = max(least_bits, STORED_BITS[weight.scheme.bits])
    features = weight.in_features
    size = choose_block_size(weight.scheme, features)
    blocks = -(-features // size)
    padded = F.pad(weight.integers, (0, blocks * size - features))
    # Every block lies within one group.
    repeats = -(-blocks // weight.scales.shape[1])
    zero_points = weight.zero_points.repeat_interleave(repeats, 1)
    return BlockWeight(
        bits,
        size,
        pack_bytes(padded.reshape(-1, blocks, size), bits),
        weight.scales.float().repeat_interleave(repeats, 1),
        pack_bytes(zero_points, bits),
        bool((zero_points == 2 ** (bits - 1)).all()),
    )


def pack_bytes(values: Tensor, bits: int) -> Tensor:
    """Pack along the last dimension, the first value into the lowest bits of a byte.

    Args:
        values: uint8 [..., n], from 0 to 2**bits - 1.
        bits: 2, 4 or 8.

    Returns:
        uint8 [..., ceil(n * bits / 8)]; unused bits are zero.
    """
    per_byte = 8 // bits
    padded = F.pad(values, (0, -values.shape[-1] % per_byte))
    slots = padded.reshape(*padded.shape[:-1], -1, per_byte)
    packed: Tensor = slots[..., 0].clone()
    for slot in range(1, per_byte):
        packed |= slots[..., slot] << (slot * bits)
    return packed
