"""Output error of a layer, from the difference of its weights and the Hessian of its inputs.

With `H = X' X` over the calibration inputs, the squared outputs of a row e are `e H e'`. Summed
over the rows of a difference of weights, this is the squared error of the outputs.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def row_energy(rows: Tensor, hessian: Tensor) -> Tensor:
    """Compute each row's quadratic form under the Hessian.

    Args:
        rows: float32 `[N, K]`.
        hessian: `[K, K]`, symmetric, positive semidefinite.

    Returns:
        float32 `[N]`, not negative.
    """
    return ((rows @ hessian.float()) * rows).sum(dim=1).clamp_min(0)


def relative_error(
    weights: Iterable[Tensor], candidates: Iterable[Tensor], hessian: Tensor
) -> float:
    """Compute the squared output error of layers that share an input, over their squared outputs.

    Args:
        weights: `[N, K]` each, any float dtype.
        candidates: replacements of the weights, same shapes.
        hessian: `[K, K]`.

    Returns:
        0 without an error; 1 if the candidates are zero.
    """
    error = energy = torch.zeros((), device=hessian.device)
    for weight, candidate in zip(weights, candidates, strict=True):
        error = error + row_energy(weight.float() - candidate.float(), hessian).sum()
        energy = energy + row_energy(weight.float(), hessian).sum()
    return float(error / energy.clamp_min(torch.finfo(torch.float32).tiny))
