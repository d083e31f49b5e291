"""Round to nearest: the method without calibration, and the yardstick of all others."""

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
        weight: ``[out_features, in_features]``, any float dtype.
        scheme: the grid.
        hessian: ``[in_features, in_features]``; with it scales are searched, which clips the
            largest weights of a group where that pays (`scale_search.py`).
        signed: whether symmetric scales may be negative; None: where `may_be_signed`.

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
    """Whether scales of either sign are worth it and safe: weights alone, below 8 bits.

    With 8 bits one level more at an end is nothing, and kernels for int8 activations requantize
    group scales against their maximum, not their largest magnitude.
    """
    return scheme.symmetric and scheme.bits < 8 and scheme.activations == "none"
