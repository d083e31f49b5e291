"""Rounding with a gradient: the values are those that a checkpoint or a layer will have.

The gradient passes the rounding unchanged (straight-through estimator, Bengio et al., arXiv
1308.3432).
"""

from __future__ import annotations

from torch import Tensor

from ..compressed_weight import CompressedWeight
from ..kernels.reference import quantize_activations
from ..methods.affine import QuantizedWeight
from ..methods.grids.activation_rounding import rounded_activations
from ..methods.grids.table_weight import TableWeight


def round_straight(values: Tensor, rounded: Tensor) -> Tensor:
    """Return `rounded`, with the gradient of `values`."""
    return values + (rounded - values).detach()


def round_inputs(x: Tensor, weight: CompressedWeight) -> Tensor:
    """Round the inputs of a layer as it does at inference, with the gradient of `x`.

    Args:
        x: `[..., K]` float.
        weight: of the layer. Without quantized activations `x` is returned.

    Raises:
        ValueError: the kind of the weight is unknown.
    """
    if weight.scheme.activations == "none":
        return x
    values = x.detach()
    if isinstance(weight, TableWeight):
        rounded = rounded_activations(values, weight.scheme, weight.input_scale)
    elif isinstance(weight, QuantizedWeight):
        levels, scales = quantize_activations(values.flatten(0, -2), weight.input_scale)
        rounded = (levels.float() * scales).reshape(x.shape)
    else:
        raise ValueError(f"inputs of {weight.scheme.kind} weights cannot be rounded in training")
    return round_straight(x, rounded.to(x.dtype))
