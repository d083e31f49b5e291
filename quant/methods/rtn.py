"""Round to nearest (RTN): no calibration; the baseline and the fallback of the other methods."""

from torch import Tensor

from ..recipe.scheme import QuantScheme
from .affine import QuantizedWeight
from .grids.integer_grid import fit_for_rounding


def rtn(
    weight: Tensor,
    scheme: QuantScheme,
    hessian: Tensor | None = None,
    *,
    signed: bool | None = None,
) -> QuantizedWeight:
    """Quantize a matrix by rounding every weight to the nearest integer of its group.

    Args:
        weight: `[out_features, in_features]`, any float dtype.
        scheme: the grid.
        hessian: `[in_features, in_features]`. If given, scales are searched: the largest weights
            of a group are clipped where that lowers the output error (`scale_search.py`).
        signed: whether symmetric scales may be negative; None decides by `may_be_signed`.

    Raises:
        ValueError: the weight is not finite or its width does not divide into groups.
    """
    grid = fit_for_rounding(weight, scheme, hessian, signed=signed)
    return grid.compressed(grid.nearest(weight))
