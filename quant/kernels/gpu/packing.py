"""Layout of weights for the Triton kernels, in plain torch.

The inputs are divided into tiles. The words of one tile and all output features are contiguous, so
that a block of a kernel reads one contiguous piece of memory per step, 16 bytes per thread.

Within a row of a tile, words are in the order of the fragments that tensor cores take from four
neighbouring threads (PTX ISA, "Matrix Fragments for mma.m16n8k16", operand A): thread c of the four
holds inputs 2c, 2c + 1, 2c + 8 and 2c + 9 of every 16. Its words are contiguous, and its inputs
come in pairs from the two halves of a word, because 16-bit arithmetic computes pairs:

- 4 bits: word (c, b) holds the inputs 32 b + 8 s + 2 c + h at bit 4 s + 16 h; s < 4, h < 2.
- 8 bits: word (c, b) holds the inputs 16 b + 8 s + 2 c + h at bit 8 s + 16 h; s < 2, h < 2.

Integers are stored as two's complement relative to the midpoint (8 or 128), which is what int8
tensor cores multiply. The sum over the inputs of a tile does not depend on their order, so those
kernels read the words as they are and take activations in the same order (`input_order`).

Letters: N = out_features, K = in_features, G = groups per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 128
"""Output features are padded to a multiple of this, the largest block of a kernel."""
TILES = (64, 32)
"""Inputs per tile; the largest that divides a group is taken."""
NIBBLE, BYTE = 4, 8
_LANES = 4  # threads that share the inputs of a fragment
_HALF = 16


@dataclass(frozen=True)
class PackedWeight:
    """A weight in the layout of the Triton kernels."""

    words: Tensor
    """int32 `[K / tile, N', tile * width / 32]`; N' is N padded to a multiple of `ROWS`."""
    grid: Tensor
    """int32 `[G, N']`: the bits of a float32 scale; with `zero` None a 16-bit scale in the high
    half and the zero point, unsigned, in the low byte."""
    kind: str
    """`nibbles` or `bytes` (integers), or `e4m3`."""
    bits: int
    """Bits of the integers, or of a code."""
    out_features: int
    in_features: int
    zero: int | None
    """The zero point of all weights, unsigned; None where they differ."""
    scale_dtype: torch.dtype
    """Dtype of the scales in `grid`."""
    exact_dtypes: frozenset[torch.dtype]
    """16-bit dtypes that represent all scales exactly."""

    @property
    def width(self) -> int:
        """Stored bits of a weight."""
        return NIBBLE if self.kind == "nibbles" else BYTE

    @property
    def tile(self) -> int:
        """Inputs per tile."""
        return self.words.shape[2] * 32 // self.width

    @property
    def groups(self) -> int:
        """Groups per row."""
        return self.grid.shape[0]

    @property
    def tiles_per_group(self) -> int:
        """Tiles with the same scale."""
        return self.words.shape[0] // self.groups

    @property
    def midpoint(self) -> int:
        """The integer that is stored as zero."""
        return 1 << (self.width - 1)


def tile_size(in_features: int, groups: int) -> int | None:
    """Return the inputs per tile of a weight; None if no tile divides a group."""
    group = in_features // groups
    return next((tile for tile in TILES if group % tile == 0), None)


def why_not_groups(in_features: int, groups: int) -> str | None:
    """Explain why groups of this width have no packed form; None if they have one."""
    if tile_size(in_features, groups) is None:
        width = in_features // groups
        return f"groups of {width} inputs; the Triton kernels take multiples of {TILES[-1]}"
    return None


def why_not_scales(scales: Tensor, zero_points: Tensor) -> str | None:
    """Explain why scales and zero points have no packed form; None if they have one."""
    if _common_value(zero_points) is None and not _exact_dtypes(scales):
        return "its scales are exact in neither bf16 nor fp16, and its zero points differ"
    return None


def input_order(tile: int, width: int) -> Tensor:
    """Return the input at every position of a tile's row in memory.

    Args:
        tile: inputs per tile.
        width: stored bits of a weight, 4 or 8.

    Returns:
        int64 `[tile]`; the position counts bits, from the low ones of a word upwards.
    """
    shifts = _HALF // width
    inputs = torch.arange(tile).reshape(-1, shifts, _LANES, 2)
    return inputs.permute(2, 0, 3, 1).flatten()  # lane, word, half, shift


def prepack(integers: Tensor, scales: Tensor, zero_points: Tensor, bits: int) -> PackedWeight:
    """Pack integers.

    Args:
        integers: uint8 `[N, K]`.
        scales: float `[N, G]`.
        zero_points: uint8 `[N, G]`.
        bits: 2 to 8.

    Raises:
        ValueError: no tile divides a group, or see `why_not_scales`.
    """
    kind, width = ("nibbles", NIBBLE) if bits <= NIBBLE else ("bytes", BYTE)
    if (reason := why_not_scales(scales, zero_points)) is not None:
        raise ValueError(reason)
    exact, zero = _exact_dtypes(scales), _common_value(zero_points)
    signed = integers ^ (1 << (width - 1))
    scale_dtype = torch.float32
    if zero is None:
        scale_dtype = torch.bfloat16 if torch.bfloat16 in exact else torch.float16
        halves = scales.to(scale_dtype).view(torch.int16).int()
        grid = (halves << _HALF) | zero_points.int()
    else:
        grid = scales.float().view(torch.int32)
    return PackedWeight(
        _pack(signed, scales.shape[1], width),
        F.pad(grid.t(), (0, -len(integers) % ROWS)).contiguous(),
        kind,
        bits,
        integers.shape[0],
        integers.shape[1],
        zero,
        scale_dtype,
        exact,
    )


def prepack_e4m3(codes: Tensor, scales: Tensor) -> PackedWeight:
    """Pack E4M3 numbers.

    Args:
        codes: uint8 `[N, K]`, no NaN.
        scales: float32 `[N, G]`.

    Raises:
        ValueError: no tile divides a group.
    """
    return PackedWeight(
        _pack(codes, scales.shape[1], BYTE),
        F.pad(scales.float().view(torch.int32).t(), (0, -len(codes) % ROWS)).contiguous(),
        "e4m3",
        BYTE,
        codes.shape[0],
        codes.shape[1],
        0,
        torch.float32,
        _exact_dtypes(scales),
    )


def unprepack(weight: PackedWeight) -> tuple[Tensor, Tensor, Tensor]:
    """Undo `prepack`.

    Returns:
        uint8 integers, or codes, `[N, K]`; float32 scales and uint8 zero points, `[N, G]`.
    """
    width, n = weight.width, weight.out_features
    bits = torch.arange(0, 32, width, dtype=torch.int32, device=weight.words.device)
    values = (weight.words[:, :n, :, None] >> bits) & ((1 << width) - 1)
    values = values.flatten(2).to(torch.uint8)  # [tiles, N, tile] in memory order
    inverse = input_order(weight.tile, width).argsort().to(values.device)
    codes = values[:, :, inverse].permute(1, 0, 2).reshape(n, -1)
    grid = weight.grid[:, :n].t().contiguous()
    if weight.zero is None:
        halves = (grid >> _HALF).to(torch.int16)
        scales = halves.view(weight.scale_dtype).float()
        zero_points = (grid & 0xFF).to(torch.uint8)
    else:
        scales = grid.view(torch.float32)
        zero_points = torch.full_like(grid, weight.zero, dtype=torch.uint8)
    if weight.kind != "e4m3":
        codes = codes ^ weight.midpoint
    return codes, scales, zero_points


def _pack(values: Tensor, groups: int, width: int) -> Tensor:
    """Pack uint8 `[N, K]` in words."""
    rows, columns = values.shape
    tile = tile_size(columns, groups)
    if tile is None:
        raise ValueError(why_not_groups(columns, groups))
    order = input_order(tile, width).to(values.device)
    padded = F.pad(values, (0, 0, 0, -rows % ROWS))
    ordered = padded.reshape(len(padded), -1, tile)[:, :, order].transpose(0, 1)
    words = torch.zeros(
        *ordered.shape[:2], tile * width // 32, dtype=torch.int32, device=values.device
    )
    parts = ordered.reshape(*words.shape, 32 // width)
    for index in range(32 // width):
        words |= parts[..., index].int() << (width * index)
    return words


def _common_value(zero_points: Tensor) -> int | None:
    """Return the value of all zero points; None where they differ."""
    first = zero_points.flatten()[0]
    return int(first) if bool((zero_points == first).all()) else None


def _exact_dtypes(scales: Tensor) -> frozenset[torch.dtype]:
    return frozenset(
        dtype
        for dtype in (torch.bfloat16, torch.float16)
        if bool((scales.to(dtype).float() == scales.float()).all())
    )
