"""Shrink a group's scale where its largest weight is not worth the coarse steps of all others.

A scale that reaches the largest weight of a group is coarse for the rest. Each group tries a few
smaller ones and keeps the best; what "best" means depends on what comes afterwards.

- Plain rounding makes up for nothing, so there the error in the outputs counts, by the group's own
  block of the Hessian: the clipping of AWQ (Lin et al., arXiv 2306.00978, section 5.1).
- A solver makes up for errors by moving weights that come later, and they need the room that
  clipping takes away. Before it scales shrink by a fifth at most, and the rounding error counts to
  a power above two, which protects large weights. Weighting by the Hessian's diagonal and deeper
  clipping give less error in each layer, and a model that is further from the original.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..recipe.scheme import QuantScheme
from .affine import round_scales

# The first is the scale as it is, which also wins every tie: groups of zeros keep it, and before
# rounding those that calibration never excited.
CLIPPING_RATIOS = tuple(1.0 - 0.025 * step for step in range(17))
SOLVER_RATIOS = tuple(1.0 - 0.0125 * step for step in range(17))

EXPONENT = 2.4
"""Of the rounding error before a solver; the same as GPTQ's reference code takes."""

Loss = Callable[[Tensor], Tensor]
"""Error ``[N, G, W]``, which it may overwrite, to losses ``[N, G]``."""


VALUES_AT_ONCE = 2**18  # weights whose candidates stay in the second cache


def search_scales(
    weight: Tensor, scales: Tensor, zero_points: Tensor, scheme: QuantScheme
) -> Tensor:
    """The best of `SOLVER_RATIOS` times each scale, for weights that a solver then moves.

    Args:
        weight: float32 ``[N, K]``.
        scales: float32 ``[N, G]``, from the groups' ranges.
        zero_points: uint8 ``[N, G]``, kept.
        scheme: the grid.

    Returns:
        float32 ``[N, G]``, see `round_scales`.
    """

    def loss(error: Tensor) -> Tensor:
        # A power by way of logarithms takes two thirds of the time of `pow`.
        return error.abs_().log2_().mul_(EXPONENT).exp2_().sum(dim=-1)

    rows = max(1, VALUES_AT_ONCE // weight.shape[1])
    parts = [slice(begin, begin + rows) for begin in range(0, len(weight), rows)]
    return torch.cat(
        [
            _best(weight[part], scales[part], zero_points[part], scheme, SOLVER_RATIOS, loss)
            for part in parts
        ]
    )


def clip_scales(
    weight: Tensor, scales: Tensor, zero_points: Tensor, hessian: Tensor, scheme: QuantScheme
) -> Tensor:
    """The best of `CLIPPING_RATIOS` times each scale, for weights that are rounded.

    Args:
        weight: float32 ``[N, K]``.
        scales: float32 ``[N, G]``, from the groups' ranges, of either sign.
        zero_points: uint8 ``[N, G]``, kept.
        hessian: ``[K, K]``, ``X' X`` of the layer's inputs up to a positive factor.
        scheme: the grid.

    Returns:
        float32 ``[N, G]``, see `round_scales`.
    """
    blocks = group_blocks(hessian.float(), scales.shape[1])

    def loss(error: Tensor) -> Tensor:
        rows = error.transpose(0, 1)
        return ((rows @ blocks) * rows).sum(dim=-1).t()

    return _best(weight, scales, zero_points, scheme, CLIPPING_RATIOS, loss)


def group_blocks(hessian: Tensor, groups: int) -> Tensor:
    """``[G, W, W]``: the blocks on the diagonal of a Hessian ``[K, K]``, one for each group."""
    width = hessian.shape[0] // groups
    blocks = hessian.reshape(groups, width, groups, width)
    return torch.stack([blocks[group, :, group] for group in range(groups)])


def _best(
    weight: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    scheme: QuantScheme,
    ratios: Sequence[float],
    loss: Loss,
) -> Tensor:
    """Each group's scale times the ratio of least loss, the first of equals."""
    least = torch.full_like(scales, torch.inf)
    chosen = scales
    grouped, zeros = weight.reshape(*scales.shape, -1), zero_points.float()[..., None]
    low, high = -zeros, scheme.max_level - zeros
    for ratio in ratios:
        candidate = scales if ratio == 1.0 else round_scales(scales * ratio)
        step = candidate[..., None]
        levels = (grouped / step).round_()
        torch.clamp(levels, low, high, out=levels)
        found = loss(levels.mul_(step).sub_(grouped))
        chosen = torch.where(found < least, candidate, chosen)
        least = torch.minimum(found, least)
    return chosen
