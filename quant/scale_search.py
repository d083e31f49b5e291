"""Shrink a group's scale where the calibration inputs say that its largest weight is not worth it.

A scale that reaches the largest weight of a group is coarse for all others. Each group tries a few
smaller ones and keeps the one with the least weighted rounding error. The weights are the diagonal
of the Hessian, the energy of each input: what columns have in common is left out, because the
solver makes up for that part afterwards.
"""

import torch
from torch import Tensor

from .affine import dequantize, quantize, round_scales
from .scheme import QuantScheme

# The first is the scale as it is, which also wins every tie: groups that calibration never excited
# and groups of zeros keep it.
RATIOS = tuple(1.0 - 0.025 * step for step in range(17))


def search_scales(
    weight: Tensor, scales: Tensor, zero_points: Tensor, energy: Tensor, scheme: QuantScheme
) -> Tensor:
    """The best of `RATIOS` times each scale.

    Args:
        weight: float32 ``[N, K]``.
        scales: float32 ``[N, G]``, from the groups' ranges.
        zero_points: uint8 ``[N, G]``, kept.
        energy: ``[K]``, not negative: mean square of each input feature.
        scheme: the grid.

    Returns:
        float32 ``[N, G]``, see `round_scales`.
    """
    rows, groups = scales.shape
    energy = energy.float()
    best = torch.full_like(scales, torch.inf)
    chosen = scales
    for ratio in RATIOS:
        candidate = scales if ratio == 1.0 else round_scales(scales * ratio)
        error = dequantize(quantize(weight, candidate, zero_points, scheme), candidate, zero_points)
        error.sub_(weight).square_().mul_(energy)
        loss = error.reshape(rows, groups, -1).sum(dim=-1)
        chosen = torch.where(loss < best, candidate, chosen)
        best = torch.minimum(loss, best)
    return chosen
