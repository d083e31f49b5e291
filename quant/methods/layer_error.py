"""How far a layer's outputs move when its weight does, judged by its Hessian.

With ``H = X' X`` over the calibration inputs, the squared outputs of a row e are ``e H e'``; summed
over the rows of a difference of weights this is the squared error of the outputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def row_energy(rows: Tensor, hessian: Tensor) -> Tensor:
    """Each row's quadratic form under the Hessian.

    Args:
        rows: float32 ``[N, K]``.
        hessian: ``[K, K]``, symmetric, not negative.

    Returns:
        float32 ``[N]``, not negative.
    """
    return ((rows @ hessian.float()) * rows).sum(dim=1).clamp_min(0)


def relative_error(
    weights: Sequence[Tensor], candidates: Sequence[Tensor], hessian: Tensor
) -> float:
    """Squared output error of layers that share an input, relative to their squared outputs.

    Args:
        weights: ``[N, K]`` each, any float dtype.
        candidates: what would take their place, same shapes.
        hessian: ``[K, K]``.
    """
    error = energy = torch.zeros((), device=hessian.device)
    for weight, candidate in zip(weights, candidates, strict=True):
        error = error + row_energy(weight.float() - candidate.float(), hessian).sum()
        energy = energy + row_energy(weight.float(), hessian).sum()
    return float(error / energy.clamp_min(torch.finfo(torch.float32).tiny))
