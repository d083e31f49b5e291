"""Calibrate against the float model: the weights that answer best to already quantized inputs.

When block k is solved, its inputs X come from quantized blocks, while the float model would have
given X~. GPTQ keeps ``W X``; what is wanted is ``W X~``. Li et al., "GPTAQ: Efficient
Finetuning-Free Quantization for Asymmetric Calibration" (arXiv 2504.02692, section 3) put the
difference into the column updates; Arai and Ichikawa, "Quantization Error Propagation" (arXiv
2504.09629, section 4) into the weights beforehand. The two minimize the same least squares,

    || W X~ - Q X ||^2 = || (W' - Q) X ||^2 + constant,    W' = W + W D H^-1,
    H = X X',  D = (X~ - X) X',

so one linear solve moves the target to W' and GPTQ stays what it is.
"""

import torch
from torch import Tensor

from .cholesky import LADDER


def asymmetric_target(
    weight: Tensor,
    hessian: Tensor,
    cross: Tensor,
    *,
    strength: float = 0.5,
    damp_percent: float = 0.01,
) -> Tensor:
    """The weight whose outputs on the quantized path come nearest to the float path's.

    Args:
        weight: ``[N, K]``, any float dtype.
        hessian: ``[K, K]``, ``X X'`` of the quantized path's inputs.
        cross: ``[K, K]``, ``(X~ - X) X'`` with the same normalization.
        strength: share of the correction that is made, 0 (none) to 1 (all). The whole of it fits
            the calibration set best and others less (both papers stay below 1).
        damp_percent: fraction of the Hessian's mean diagonal added to it.

    Returns:
        float32 ``[N, K]``.

    Raises:
        ValueError: shapes do not fit, something is not finite, a parameter is out of range, or
            the damped Hessian cannot be solved.
    """
    columns = weight.shape[1]
    for name, matrix in (("hessian", hessian), ("cross", cross)):
        if tuple(matrix.shape) != (columns, columns):
            raise ValueError(
                f"{name} is {tuple(matrix.shape)}; a weight of {columns} columns needs "
                f"({columns}, {columns})"
            )
        if not bool(torch.isfinite(matrix).all()):
            raise ValueError(f"{name} is not finite; calibrate in bf16 or fp32")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength is {strength}; it is a share from 0 to 1")
    if not 0 < damp_percent <= 1:
        raise ValueError(f"damp_percent is {damp_percent}; it is a fraction above 0, at most 1")
    original = weight.float()
    if strength == 0 or not bool(cross.any()):
        return original.clone()
    # W D H^-1, as the solution Y of Y H = W D; H is symmetric.
    change = torch.cholesky_solve(
        (original.double() @ cross.double()).t(), _factor(hessian, damp_percent)
    )
    return original + strength * change.t().float()


def _factor(hessian: Tensor, damp_percent: float) -> Tensor:
    """Lower Cholesky factor of the damped Hessian in float64; damping climbs as in `gptq`."""
    matrix = hessian.double()
    mean = matrix.diagonal().mean()
    for rung in LADDER:
        damped = matrix.clone()
        damped.diagonal().add_(damp_percent * rung * mean)
        found: tuple[Tensor, Tensor] = torch.linalg.cholesky_ex(damped)
        if not bool(found[1] != 0):
            return found[0]
    raise ValueError(
        f"no Cholesky factor up to damping {damp_percent * LADDER[-1]:g}; use more calibration "
        "samples or a larger damp_percent"
    )
