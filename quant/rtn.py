"""Round to nearest: the method without calibration, and the yardstick of all others."""

from torch import Tensor

from .affine import QuantizedWeight, choose_qparams, quantize
from .scheme import QuantScheme


def rtn(weight: Tensor, scheme: QuantScheme) -> QuantizedWeight:
    """Quantize a matrix by rounding every weight to the nearest level of its group.

    Args:
        weight: ``[out_features, in_features]``, any float dtype.
        scheme: the grid.

    Raises:
        ValueError: the weight is not finite or its width does not divide into groups.
    """
    scales, zero_points = choose_qparams(weight, scheme)
    integers = quantize(weight, scales, zero_points, scheme)
    return QuantizedWeight(integers, scales, zero_points, scheme)
