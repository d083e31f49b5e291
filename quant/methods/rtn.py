"""Round to nearest (RTN): no calibration; the baseline and the fallback of the other methods."""

from torch import Tensor

from ..recipe.scheme import QuantScheme
from .affine import QuantizedWeight, choose_qparams, quantize
from .scale_search import clip_scales


def rtn(
    weight: Tensor,
    scheme: QuantScheme,
    hessian: Tensor | None = None,
    *,
    signed: bool | None = None,
) -> QuantizedWeight:
    """Quantize a matrix by rounding every weight to the nearest level of its group.

    Args:
        weight: `[out_features, in_features]`, any float dtype.
        scheme: the grid.
        hessian: `[in_features, in_features]`. If given, scales are searched: the largest weights
            of a group are clipped where that lowers the output error (`scale_search.py`).
        signed: whether symmetric scales may be negative; None decides by `may_be_signed`.

    Raises:
        ValueError: the weight is not finite or its width does not divide into groups.
    """
    if signed is None:
        signed = may_be_signed(scheme)
    scales, zero_points = choose_qparams(weight, scheme, signed=signed)
    if hessian is not None:
        scales = clip_scales(weight.float(), scales, zero_points, hessian, scheme)
    integers = quantize(weight, scales, zero_points, scheme)
    return QuantizedWeight(integers, scales, zero_points, scheme)


def may_be_signed(scheme: QuantScheme) -> bool:
    """Whether negative scales are useful and safe: weight-only schemes below 8 bits.

    At 8 bits one more level on one side is negligible. Kernels for int8 activations requantize the
    scales of a row's groups relative to their maximum, not to their largest magnitude.
    """
    return scheme.symmetric and scheme.bits < 8 and scheme.activations == "none"
