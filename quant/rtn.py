"""Round to nearest: the method without calibration, and the yardstick of all others."""

from torch import Tensor

from .affine import QuantizedWeight, choose_qparams, quantize
from .scale_search import clip_scales
from .scheme import QuantScheme


def rtn(weight: Tensor, scheme: QuantScheme, hessian: Tensor | None = None) -> QuantizedWeight:
    """Quantize a matrix by rounding every weight to the nearest level of its group.

    Args:
        weight: ``[out_features, in_features]``, any float dtype.
        scheme: the grid.
        hessian: ``[in_features, in_features]``; with it scales are searched, which clips the
            largest weights of a group where that pays (`scale_search.py`).

    Raises:
        ValueError: the weight is not finite or its width does not divide into groups.
    """
    scales, zero_points = choose_qparams(weight, scheme)
    if hessian is not None:
        scales = clip_scales(weight.float(), scales, zero_points, hessian, scheme)
    integers = quantize(weight, scales, zero_points, scheme)
    return QuantizedWeight(integers, scales, zero_points, scheme)
