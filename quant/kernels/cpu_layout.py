"""The weight layout of the CPU kernels; see the diagram in `cpu/layout.h`.

Letters: N = out_features, K = in_features, G = groups per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TILE, LANES = 64, 16
# Inputs of a step in the order of a lane's bits, from the lowest; see layout.h.
ORDER = {4: (0, 2, 4, 6, 1, 3, 5, 7), 8: (0, 2, 1, 3)}


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
