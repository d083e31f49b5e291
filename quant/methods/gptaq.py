"""Asymmetric calibration: correct a weight for inputs that differ from the float model's.

When block k is solved, its inputs X come from quantized blocks, while the float model has inputs
X~. GPTQ preserves `W X`; the output to preserve is `W X~`. Li et al., "GPTAQ: Efficient
Finetuning-Free Quantization for Asymmetric Calibration" (arXiv 2504.02692, section 3), add the
difference to the column updates; Arai and Ichikawa, "Quantization Error Propagation" (arXiv
2504.09629, section 4), add it to the weights beforehand. Both minimize the same least squares,

    || W X~ - Q X ||^2 = || (W' - Q) X ||^2 + constant,    W' = W + W D H^-1,
    H = X X',  D = (X~ - X) X',

so one linear solve moves the target from W to W', and GPTQ itself stays unchanged. (The residual of
the regression of `W X~` on X is orthogonal to X: it is the constant.)
"""

import torch
from torch import Tensor

from ...common.validation import check_value
from ..recipe.ranges import Share
from .cholesky import damping_fractions


def asymmetric_target(
    weight: Tensor,
    hessian: Tensor,
    cross: Tensor,
    *,
    strength: float = 0.5,
    damp_percent: float = 0.01,
) -> Tensor:
    """Compute the weight whose outputs on quantized inputs come closest to the float outputs.

    Args:
        weight: `[N, K]`, any float dtype.
        hessian: `[K, K]`, `X X'` of the inputs from quantized blocks.
        cross: `[K, K]`, `(X~ - X) X'` with the same normalization.
        strength: fraction of the correction that is applied, 0 (none) to 1 (all). The full
            correction fits the calibration set best and generalizes worse; both papers stay
            below 1.
        damp_percent: fraction of the Hessian's mean diagonal added to it, see `damping_fractions`.

    Returns:
        float32 `[N, K]`.

    Raises:
        ValueError: shapes do not match, a value is not finite, a parameter is out of range, or
            the damped Hessian cannot be factored.
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
    check_value(Share, strength, "strength")
    fractions = damping_fractions(damp_percent)
    original = weight.float()
    if strength == 0 or not bool(cross.any()):
        return original.clone()
    # W D H^-1 is the solution Y of Y H = W D, that is of H Y' = (W D)'. In float64: the solve
    # amplifies rounding errors by the condition number of H, and its result is not clamped to a
    # grid as in GPTQ.
    change = torch.cholesky_solve(
        (original.double() @ cross.double()).t(), _factor(hessian, fractions)
    )
    return original + strength * change.t().float()


def _factor(hessian: Tensor, fractions: tuple[float, ...]) -> Tensor:
    """Compute the lower Cholesky factor of the damped Hessian in float64.

    Raises:
        ValueError: there is none, even with the largest damping.
    """
    matrix = hessian.double()
    mean = matrix.diagonal().mean()
    for fraction in fractions:
        damped = matrix.clone()
        damped.diagonal().add_(fraction * mean)
        lower, info = torch.linalg.cholesky_ex(damped)
        if not bool(info != 0):
            factor: Tensor = lower
            return factor
    raise ValueError(
        f"no Cholesky factor up to damping {fractions[-1]:g}; use more calibration "
        "samples or a larger damp_percent"
    )
