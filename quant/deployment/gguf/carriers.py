"""Blocks of GGUF that hold the integers of a checkpoint as they are.

GGUF stores a row of weights in blocks of 32 with a scale in fp16 (ggml's `ggml-common.h`). A weight
of ours is `scale * (q - zero_point)`, and the block types below store such differences: a type
carries a scheme if the differences are within its range and no block crosses two groups. The
scale of a group is repeated in its blocks. Nothing is rounded: a scale that fp16 does not hold
exactly is refused.

Letters: N = out_features, K = in_features, G = groups per row, B = blocks per row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...compressed_weight import CompressedWeight
from ...methods.affine import QuantizedWeight
from ...methods.grids.table_weight import TableWeight, row_chunks
from ...recipe.scheme import QuantScheme, Scheme, TableScheme

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int16]

MIN_EXPONENT = -127
"""Exponent of the E8M0 code 0."""


@dataclass(frozen=True)
class Carrier:
    """A block type."""

    name: str
    """Of `GGMLQuantizationType`."""
    block: int
    """Weights per block."""
    nbytes: int
    """Bytes per block."""

    def row_bytes(self, in_features: int) -> int:
        """Return the bytes of a row of `in_features` weights, a multiple of the block."""
        return in_features // self.block * self.nbytes


@dataclass(frozen=True)
class IntegerCarrier(Carrier):
    """A block type of differences `q - zero_point` under one scale."""

    low: int
    """Smallest difference that it holds."""
    high: int
    """Largest difference that it holds."""
    pack: Callable[[Integers], Bytes]
    """Packs differences `[..., block]` to the bytes after the scale, `[..., nbytes - 2]`."""


def _nibbles(codes: Integers) -> Bytes:
    """Pack codes 0 to 15 `[..., 32]`: element j is the low half of byte j, j + 16 the high one."""
    low, high = codes[..., :16], codes[..., 16:]
    return (low | high << 4).astype(np.uint8)


def _pack_q4(differences: Integers) -> Bytes:
    return _nibbles(differences + 8)


def _pack_q5(differences: Integers) -> Bytes:
    """Pack the high bits, bit i of a little-endian word for element i, before the low halves."""
    codes = differences + 16
    high = np.packbits((codes >> 4).astype(np.uint8), axis=-1, bitorder="little")
    return np.concatenate([high, _nibbles(codes & 15)], axis=-1)


def _pack_q8(differences: Integers) -> Bytes:
    return differences.astype(np.int8).view(np.uint8)


INTEGER_CARRIERS = (
    IntegerCarrier("Q4_0", 32, 18, -8, 7, _pack_q4),
    IntegerCarrier("Q5_0", 32, 22, -16, 15, _pack_q5),
    IntegerCarrier("Q8_0", 32, 34, -128, 127, _pack_q8),
)
"""In the order of their size."""
Q4_1 = Carrier("Q4_1", 32, 20)
"""Integers 0 to 15 under a scale, plus the least value of the block in fp16."""
MXFP4 = Carrier("MXFP4", 32, 17)
"""Numbers of E2M1 under a power of two."""
BLOCK = 32
"""Smallest block."""


def difference_range(scheme: QuantScheme) -> tuple[int, int]:
    """Return the smallest and largest `q - zero_point` of a scheme."""
    if scheme.symmetric:
        return -scheme.midpoint, scheme.max_level - scheme.midpoint
    return -scheme.max_level, scheme.max_level


def choose_carrier(schemes: Collection[Scheme], in_features: int) -> Carrier | str:
    """Choose the smallest block type that holds weights of all the schemes.

    Args:
        schemes: of the layers that share a tensor: one, or one per expert.
        in_features: K.

    Returns:
        The type; or the reason that there is none, and a remedy.
    """
    grids = {scheme.grid for scheme in schemes if isinstance(scheme, TableScheme)}
    if grids - {"mxfp4"}:
        return (
            f"GGUF has no blocks for {', '.join(sorted(grids))} with its scales; allowed: mxfp4 "
            "and integers of 2 to 8 bits"
        )
    for scheme in schemes:
        width = scheme.width(in_features)
        if in_features % BLOCK:
            return (
                f"its {in_features} input features are no multiple of {BLOCK}, the block of GGUF; "
                "keep it in float, or quantize a width that is padded"
            )
        if width % BLOCK:
            return (
                f"{scheme.label} has groups of {width}; allowed: multiples of {BLOCK}, or one "
                "group per row; quantize it again with such a group_size"
            )
    if grids and all(isinstance(scheme, TableScheme) for scheme in schemes):
        return MXFP4
    integers = [scheme for scheme in schemes if isinstance(scheme, QuantScheme)]
    if len(integers) < len(schemes):
        return "it has no integers; allowed: integers of 2 to 8 bits, and mxfp4"
    ranges = [difference_range(scheme) for scheme in integers]
    for carrier in INTEGER_CARRIERS:
        if all(carrier.low <= low and high <= carrier.high for low, high in ranges):
            return carrier
    return (
        f"GGUF has no blocks for {integers[0].label}; allowed: 2 to 8 bits symmetric, 2 to 7 bits "
        "asymmetric; quantize it again with one of these"
    )


def may_fit_q4_1(scheme: Scheme) -> bool:
    """Whether the zero points of a weight decide if Q4_1 holds it, which is smaller than Q5_0."""
    return isinstance(scheme, QuantScheme) and scheme.bits == 4 and not scheme.symmetric


def fits_q4_1(weight: CompressedWeight) -> bool:
    """Whether Q4_1 holds a weight for which `may_fit_q4_1` is true.

    The least value of a block is `-scale * zero_point`, which needs up to 12 significant bits, and
    fp16 has 11: zero points up to 8 always fit.
    """
    assert isinstance(weight, QuantizedWeight)
    least = weight.scales * weight.zero_points
    return torch.equal(least.half().float(), least)


def encode(weight: CompressedWeight, carrier: Carrier) -> Bytes:
    """Encode a weight as the blocks of a type that carries its scheme.

    Returns:
        uint8 `[N, B * carrier.nbytes]`.

    Raises:
        ValueError: fp16 does not hold a scale exactly.
    """
    rows, columns = weight.out_features, weight.in_features
    result = np.empty((rows, carrier.row_bytes(columns)), np.uint8)
    for part in row_chunks(rows, columns):
        if isinstance(weight, TableWeight):
            blocks = _mxfp4_blocks(weight, part)
        else:
            assert isinstance(weight, QuantizedWeight)
            blocks = _integer_blocks(weight, part, carrier)
        result[part] = blocks.reshape(len(blocks), -1)
    return result


def _integer_blocks(weight: QuantizedWeight, rows: slice, carrier: Carrier) -> Bytes:
    """Encode some rows, uint8 `[n, B, nbytes]`."""
    scales, zeros = weight.scales[rows], weight.zero_points[rows].numpy()
    repeats = weight.in_features // scales.shape[1] // carrier.block
    shape = (len(scales), -1, carrier.block)
    levels = weight.integers[rows].numpy().astype(np.int16).reshape(shape)
    of_block = np.repeat(zeros, repeats, axis=1)[..., None].astype(np.int16)
    scale = np.repeat(half_bytes(scales), repeats, axis=1)
    if isinstance(carrier, IntegerCarrier):
        return np.concatenate([scale, carrier.pack(levels - of_block)], axis=-1)
    least = np.repeat(half_bytes(-scales * weight.zero_points[rows]), repeats, axis=1)
    return np.concatenate([scale, least, _nibbles(levels)], axis=-1)


def _mxfp4_blocks(weight: TableWeight, rows: slice) -> Bytes:
    """Encode some rows, uint8 `[n, B, 17]`: the exponent, then the codes of E2M1."""
    codes = np.array(weight.scheme.table.codes, np.int16)[weight.indices[rows].numpy()]
    scales = weight.row_scales()[rows].numpy()
    _, exponents = np.frexp(scales)  # a power of two is 0.5 * 2**exponent
    stored = (exponents - 1 - MIN_EXPONENT).astype(np.uint8)[..., None]
    blocks = codes.reshape(len(codes), -1, MXFP4.block)
    return np.concatenate([stored, _nibbles(blocks)], axis=-1)


def half_bytes(values: Tensor) -> Bytes:
    """Convert float32 values to the bytes of fp16 numbers, uint8 `[..., 2]`.

    Raises:
        ValueError: fp16 does not hold a value exactly.
    """
    halves = values.half()
    if bool((differs := halves.float() != values).any()):
        raise ValueError(
            f"fp16 does not hold the scale {float(values[differs][0]):g} exactly, and GGUF has "
            "scales in fp16; quantize the model with vlpress, whose scales fp16 holds"
        )
    stored: Bytes = halves.contiguous().numpy().astype("<f2")[..., None].view(np.uint8)
    return stored
