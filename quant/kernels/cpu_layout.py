"""The weight layout of the CPU kernels; see the diagram in `cpu/layout.h`.

Letters: N = out_features, K = in_features, G = groups per row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

TILE, LANES = 64, 16
# Inputs of a step in the order of a lane's bits, from the lowest; see layout.h.
ORDER = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}
MOST_LEVELS = 16
"""Of a table that is no float format."""
FLOAT_MANTISSAS = (2, 3)
"""Of float formats of 8 bits: E5M2 and E4M3."""
LEAST_DIVISOR = 2.0**-100


@dataclass(frozen=True)
class Levels:
    """The levels of codes, for weights that are no integers."""

    values: Tensor
    """float32 `[2**bits]` by code; NaN for codes that no weight has."""
    mantissa: int
    """Bits of the fraction, if the codes are numbers of a float format (sign, exponent, fraction,
    with subnormal numbers and a bias of `2**(exponent bits - 1) - 1`); 0 for a table."""

    def equals(self, other: Levels | None) -> bool:
        """Whether codes mean the same."""
        return other is not None and torch.equal(
            self.values.nan_to_num(torch.inf), other.values.nan_to_num(torch.inf)
        )


@dataclass(frozen=True)
class TiledWeight:
    """A weight packed in tiles of 64 output columns."""

    packed: Tensor
    """uint8 `[tiles, steps, 256]`."""
    scales: Tensor
    """`[tiles, G, 64]`, fp16 if every scale is exact in it, else float32."""
    zero_points: Tensor | None
    """uint8 `[tiles, G, 64]`; None if all equal `zero`."""
    zero: int
    """The common zero point, or the middle of the integer range."""
    order: Tensor | None
    """int64 `[K]`: the input at each packed position; None if inputs keep their order."""
    bits: int
    """Bits as stored: 4 or 8."""
    out_features: int
    in_features: int
    group_size: int
    """Inputs per scale."""
    levels: Levels | None = None
    """None: integers."""
    divisor: float = 0.0
    """Of all scales; 0 = none."""


def why_not(
    in_features: int, bits: int, groups: int, group_index: Tensor | None = None
) -> str | None:
    """Reason why the kernels do not support a weight; None if they do.

    Args:
        in_features: K.
        bits: 2 to 8.
        groups: G.
        group_index: int32 `[K]`, or None for consecutive groups.
    """
    inputs = len(ORDER[_stored_bits(bits)])
    width = in_features // groups
    if in_features % inputs or width % inputs:
        return (
            f"groups of {width} of {in_features} inputs; the CPU kernels take multiples of {inputs}"
        )
    if group_index is not None and not bool((torch.bincount(group_index) == width).all()):
        return "the groups of its group index are of unequal size"
    return None


def prepack(
    integers: Tensor, scales: Tensor, zero_points: Tensor, bits: int, group_index: Tensor | None
) -> TiledWeight:
    """Pack a weight into tiles.

    Inputs with a group index are sorted by group first, so that groups are consecutive for the
    kernels; the activations are permuted to match at run time.

    Args:
        integers: uint8 `[N, K]`.
        scales: float `[N, G]`.
        zero_points: uint8 `[N, G]`.
        bits: 2 to 8.
        group_index: int32 `[K]`, or None for consecutive groups. `why_not` must return None.
    """
    rows, columns = integers.shape
    order = None if group_index is None else torch.argsort(group_index, stable=True)
    if order is not None:
        integers = integers[:, order]
    constant = int(zero_points[0, 0])
    same = bool((zero_points == constant).all())
    # fp16 halves the memory traffic of scales; used only if exact.
    half = scales.to(torch.float16)
    exact = torch.equal(half.float(), scales.float())
    return TiledWeight(
        packed=_pack(integers, _stored_bits(bits)),
        scales=_tile(half if exact else scales.float()),
        zero_points=None if same else _tile(zero_points),
        zero=constant if same else 1 << (bits - 1),
        order=order,
        bits=_stored_bits(bits),
        out_features=rows,
        in_features=columns,
        group_size=columns // scales.shape[1],
    )


def prepack_codes(
    codes: Tensor, scales: Tensor, levels: Levels, bits: int, divisor: float = 0.0
) -> TiledWeight:
    """Pack a weight of codes into tiles; `unprepack` returns codes in the place of integers.

    Args:
        codes: uint8 `[N, K]`.
        scales: float `[N, G]`.
        levels: of the codes.
        bits: 4 or 8.
        divisor: of all scales, see `why_not_codes`; 0 = none.

    Raises:
        ValueError: a code has no level.
    """
    unknown = levels.values.isnan()[: 1 << bits].index_select(0, codes.reshape(-1).int())
    if bool(unknown.any()):
        raise ValueError(f"the code {int(codes.reshape(-1)[unknown][0])} has no level")
    zeros = torch.zeros(scales.shape, dtype=torch.uint8)
    tiles = prepack(codes, scales, zeros, bits, None)
    return replace(tiles, levels=levels, divisor=divisor)


def why_not_codes(
    in_features: int, bits: int, groups: int, levels: int, mantissa: int, divisor: float = 0.0
) -> str | None:
    """Reason why the kernels do not support a weight of codes; None if they do.

    Args:
        in_features: K.
        bits: of a code, 1 to 8.
        groups: G.
        levels: how many there are.
        mantissa: as in `Levels`.
        divisor: of all scales; 0 = none.
    """
    if levels > MOST_LEVELS and mantissa not in FLOAT_MANTISSAS:
        return f"a table of {levels} levels; the CPU kernels take {MOST_LEVELS}, or E4M3 and E5M2"
    # Within these bounds the division of scales is correctly rounded, see `divided` in simd.h.
    if divisor and not LEAST_DIVISOR <= divisor <= 1 / LEAST_DIVISOR:
        return f"a divisor of {divisor:g}; the CPU kernels take 2**-100 to 2**100"
    return why_not(in_features, bits, groups)


def unprepack(weight: TiledWeight) -> tuple[Tensor, Tensor, Tensor]:
    """Undo `prepack`.

    Returns:
        Integers, uint8 `[N, K]`; scales, float32 `[N, G]`; zero points, uint8 `[N, G]`.
    """
    scales = _untile(weight.scales, weight.out_features).float()
    zeros = torch.full_like(scales, weight.zero, dtype=torch.uint8)
    if weight.zero_points is not None:
        zeros = _untile(weight.zero_points, weight.out_features)
    return _unpack(weight), scales, zeros


def _unpack(weight: TiledWeight) -> Tensor:
    bits, inputs = weight.bits, len(ORDER[weight.bits])
    lanes = weight.packed.reshape(-1, weight.in_features // inputs, 4, LANES, 4)
    values = torch.stack((lanes & 15, lanes >> 4), -1).flatten(-2) if bits == 4 else lanes
    positions = torch.argsort(torch.tensor(ORDER[bits]))  # of each input in its lane
    columns = values[..., positions].permute(0, 2, 3, 1, 4).reshape(-1, weight.in_features)
    integers = columns[: weight.out_features]
    if weight.order is None:
        return integers.contiguous()
    restored = torch.empty_like(integers)
    restored[:, weight.order] = integers
    return restored


def _untile(grid: Tensor, rows: int) -> Tensor:
    return grid.transpose(1, 2).reshape(-1, grid.shape[1])[:rows].contiguous()


def _stored_bits(bits: int) -> int:
    return 4 if bits <= 4 else 8


def _pack(integers: Tensor, bits: int) -> Tensor:
    inputs = len(ORDER[bits])
    # [tiles * 64, K] to [tile, step, vector, lane, byte of the lane].
    padded = F.pad(integers, (0, 0, 0, -len(integers) % TILE))
    steps = padded.shape[1] // inputs
    lanes = padded.reshape(-1, 4, LANES, steps, inputs)[..., list(ORDER[bits])]
    if bits == 4:
        lanes = lanes[..., 0::2] | (lanes[..., 1::2] << 4)
    return lanes.permute(0, 3, 1, 2, 4).reshape(-1, steps, 256)


def _tile(grid: Tensor) -> Tensor:
    padded = F.pad(grid, (0, 0, 0, -len(grid) % TILE))
    return padded.reshape(-1, TILE, grid.shape[1]).transpose(1, 2).contiguous()
