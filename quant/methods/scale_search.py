"""Search scales: shrink a group's scale where clipping its largest weight costs less than it gains.

A scale that reaches the largest weight of a group is coarse for all others. Each group tries
several smaller scales and keeps the best. The measure of "best" depends on the next step:

- Before plain rounding, which compensates nothing, it is the output error under the group's own
  block of the Hessian. This is the weight clipping of AWQ (Lin et al., arXiv 2306.00978,
  section 5.1).
- Before a solver it is the rounding error of the weights alone, to a power above two. A solver
  compensates errors by moving later weights, and they need the range that clipping removes: scales
  shrink by a fifth at most, and the power protects large weights. Weighting by the diagonal of the
  Hessian, or deeper clipping, lowers the error of each layer and yet moves the whole model further
  from the original.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..recipe.scheme import QuantScheme
from .affine import round_scales

CLIPPING_RATIOS = tuple(1.0 - 0.025 * step for step in range(17))
"""Ratios before plain rounding, 1.0 to 0.6.

The first ratio leaves the scale as it is and wins every tie: a group of zeros keeps its scale, and
so does one whose inputs are zero."""
SOLVER_RATIOS = tuple(1.0 - 0.0125 * step for step in range(17))
"""Ratios before a solver, 1.0 to 0.8; ties as above."""

EXPONENT = 2.4
"""Power of the rounding error before a solver, as in GPTQ's reference code (`quant.py`, norm)."""

Loss = Callable[[Tensor], Tensor]
"""Maps errors `[N, G, W]`, which it may overwrite, to losses `[N, G]`."""

CHUNK_ELEMENTS = 2**18
"""Weights per chunk; the temporaries of a candidate, 1 MiB in float32, stay in the L2 cache."""


def search_scales(
    weight: Tensor, scales: Tensor, zero_points: Tensor, scheme: QuantScheme
) -> Tensor:
    """Choose the best of `SOLVER_RATIOS` for each scale of a weight that a solver will move.

    Args:
        weight: float32 `[N, K]`.
        scales: float32 `[N, G]`, from the groups' ranges.
        zero_points: uint8 `[N, G]`; they stay.
        scheme: the grid.

    Returns:
        float32 `[N, G]`, see `round_scales`.
    """

    def loss(error: Tensor) -> Tensor:
        # exp2(2.4 * log2(x)) takes two thirds of the time of pow(x, 2.4).
        return error.abs_().log2_().mul_(EXPONENT).exp2_().sum(dim=-1)

    rows = max(1, CHUNK_ELEMENTS // weight.shape[1])
    chunks = [slice(begin, begin + rows) for begin in range(0, len(weight), rows)]
    return torch.cat(
        [
            _best_scales(
                weight[chunk], scales[chunk], zero_points[chunk], scheme, SOLVER_RATIOS, loss
            )
            for chunk in chunks
        ]
    )


def clip_scales(
    weight: Tensor, scales: Tensor, zero_points: Tensor, hessian: Tensor, scheme: QuantScheme
) -> Tensor:
    """Choose the best of `CLIPPING_RATIOS` for each scale of a weight that is rounded.

    Args:
        weight: float32 `[N, K]`.
        scales: float32 `[N, G]`, from the groups' ranges, of either sign.
        zero_points: uint8 `[N, G]`; they stay.
        hessian: `[K, K]`, `X' X` of the layer's inputs up to a positive factor.
        scheme: the grid.

    Returns:
        float32 `[N, G]`, see `round_scales`.
    """
    blocks = group_blocks(hessian.float(), scales.shape[1])

    def loss(error: Tensor) -> Tensor:
        # e H_g e' of each row and group: the error of the outputs, but for terms between groups.
        rows = error.transpose(0, 1)
        return ((rows @ blocks) * rows).sum(dim=-1).t()

    return _best_scales(weight, scales, zero_points, scheme, CLIPPING_RATIOS, loss)


def group_blocks(hessian: Tensor, groups: int) -> Tensor:
    """Extract the diagonal blocks `[G, W, W]` of a Hessian `[K, K]`, one for each group."""
    width = hessian.shape[0] // groups
    blocks = hessian.reshape(groups, width, groups, width)
    return torch.stack([blocks[group, :, group] for group in range(groups)])


def _best_scales(
    weight: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    scheme: QuantScheme,
    ratios: Sequence[float],
    loss: Loss,
) -> Tensor:
    """Multiply each group's scale by the ratio with the smallest loss, the first one on ties.

    The first ratio is 1.
    """
    least = torch.full_like(scales, torch.inf)
    best = scales
    grouped, zeros = weight.reshape(*scales.shape, -1), zero_points.float()[..., None]
    low, high = -zeros, scheme.max_level - zeros
    # Losses are those of the scales that will be stored, not of the unrounded ones.
    rounded = round_scales(torch.stack([scales * ratio for ratio in ratios[1:]]))
    for candidate in (scales, *rounded):
        step = candidate[..., None]
        levels = (grouped / step).round_()
        torch.clamp(levels, low, high, out=levels)
        losses = loss(levels.mul_(step).sub_(grouped))
        best = torch.where(losses < least, candidate, best)
        least = torch.minimum(losses, least)
    return best
