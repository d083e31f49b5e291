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

A layer that rounds its inputs to a grid multiplies r(X): H is `r(X) r(X)'` then and D is
`(X~ - X) r(X)'`, with the deviation of the inputs before rounding, see `CrossMoment`.
"""

from torch import Tensor

from ...common.validation import check_value
from ..recipe.ranges import Share
from .hessian.cholesky import is_finite
from .hessian.prepared_hessian import PreparedHessian


def asymmetric_target(
    weight: Tensor, deviation: Tensor, hessian: PreparedHessian, *, strength: float = 0.5
) -> Tensor:
    """Compute the weight whose outputs on quantized inputs come closest to the float outputs.

    The solve takes the factor that GPTQ takes, in float32. The rounding errors of a factor in
    float32 are far below what the damping moves.

    Args:
        weight: `[N, K]`, any float dtype.
        deviation: `[N, K]`, `W (X~ - X) X'` with the normalization of the Hessian.
        hessian: `X X'` of the inputs from quantized blocks.
        strength: fraction of the correction that is applied, 0 (none) to 1 (all). The full
            correction fits the calibration set best and generalizes worse; both papers stay
            below 1.

    Returns:
        float32 `[N, K]`.

    Raises:
        ValueError: shapes do not match, a value is not finite, `strength` is out of range, or
            the damped Hessian has no factor.
    """
    if deviation.shape != weight.shape:
        raise ValueError(
            f"deviation is {tuple(deviation.shape)}; a weight of {tuple(weight.shape)} needs the "
            "same shape"
        )
    if not is_finite(deviation):
        raise ValueError("deviation is not finite; calibrate in bf16 or fp32")
    check_value(Share, strength, "strength")
    original = weight.float()
    if strength == 0 or not bool(deviation.any()):
        return original.clone()
    return original + strength * hessian.solve(deviation)


def relative_change(original: Tensor, changed: Tensor) -> float:
    """Compute the norm of the difference over the norm of the original; 0 without a difference."""
    before = original.float()
    change = float((changed.float() - before).norm())
    return change / float(before.norm()) if change else 0.0
