"""Shrink a group's scale where the calibration inputs say that its largest weight is not worth it.

A scale that reaches the largest weight of a group is coarse for all others. Each group tries a few
smaller ones and keeps the one with the least rounding error in the outputs. Before a solver that
error is weighted by the diagonal of the Hessian alone, the energy of each input: what columns have
in common is left out, because the solver makes up for that part afterwards. Plain rounding makes up
for nothing, so there the group's own block of the Hessian counts; this is the clipping of AWQ (Lin
et al., arXiv 2306.00978, section 5.1).
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
        energy: ``[K]``, not negative, mean square of each input feature; or ``[G, W, W]``, the
            Hessian's blocks of each group (see `group_blocks`).
        scheme: the grid.

    Returns:
        float32 ``[N, G]``, see `round_scales`.
    """
    energy = energy.float()
    best = torch.full_like(scales, torch.inf)
    chosen = scales
    for ratio in RATIOS:
        candidate = scales if ratio == 1.0 else round_scales(scales * ratio)
        error = dequantize(quantize(weight, candidate, zero_points, scheme), candidate, zero_points)
        loss = _group_losses(error.sub_(weight), energy, scales.shape[1])
        chosen = torch.where(loss < best, candidate, chosen)
        best = torch.minimum(loss, best)
    return chosen


def group_blocks(hessian: Tensor, groups: int) -> Tensor:
    """``[G, W, W]``: the blocks on the diagonal of a Hessian ``[K, K]``, one for each group."""
    width = hessian.shape[0] // groups
    blocks = hessian.reshape(groups, width, groups, width)
    return torch.stack([blocks[group, :, group] for group in range(groups)])


def _group_losses(error: Tensor, energy: Tensor, groups: int) -> Tensor:
    """float32 ``[N, G]``: weighted square of the error ``[N, K]`` in each group."""
    rows = error.reshape(len(error), groups, -1)
    if energy.dim() == 1:
        return (rows.square() * energy.reshape(groups, -1)).sum(dim=-1)
    rows = rows.transpose(0, 1)
    return ((rows @ energy) * rows).sum(dim=-1).t()
