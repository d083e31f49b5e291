"""Quantization targets: a name, a weight seen as `[out_features, in_features]`, an input tap.

`LinearSpec` carries name and tap; this module is the only one that knows how the weight is stored
in the model. A family whose weights are not `nn.Linear` (experts in one 3-D tensor) extends these
functions; methods, plan and writers never look at modules.
"""

import torch
from torch import Tensor, nn

from ..model.families import LinearSpec
from .methods.affine import QuantizedWeight
from .runtime.linear import QuantLinear
from .runtime.unpacked_linear import UnpackedLinear


def weight_of(model: nn.Module, spec: LinearSpec) -> Tensor:
    """Return the weight of a target, `[out_features, in_features]`; a view, not a copy.

    Raises:
        ValueError: the layer is quantized already or differs from the family table.
    """
    module = model.get_submodule(spec.name)
    if isinstance(module, QuantLinear | UnpackedLinear):
        raise ValueError(f"{spec.name} is quantized already; start from the original model")
    weight = getattr(module, "weight", None)
    expected = (spec.out_features, spec.in_features)
    if not isinstance(weight, Tensor) or tuple(weight.shape) != expected:
        actual = "no weight" if not isinstance(weight, Tensor) else f"{tuple(weight.shape)}"
        raise ValueError(f"{spec.name} has {actual}; the family table says {expected}")
    return weight.detach()


def put_quantized(model: nn.Module, spec: LinearSpec, weight: QuantizedWeight) -> QuantLinear:
    """Replace a target by a quantized layer for inference, which keeps the bias.

    Raises:
        ValueError: the target is not a linear layer, or its bias does not fit a checkpoint.
    """
    layer = put_unpacked(model, spec, weight).pack()
    put_module(model, spec.name, layer)
    return layer


def put_unpacked(
    model: nn.Module, spec: LinearSpec, weight: QuantizedWeight, dtype: torch.dtype | None = None
) -> UnpackedLinear:
    """Replace a target by a quantized layer for the rest of the calibration, with its bias.

    Args:
        model: the model.
        spec: the target.
        weight: its quantized weight.
        dtype: of the layer's inputs; None if it will not run.

    Raises:
        ValueError: the target is not a linear layer, or its bias does not fit a checkpoint.
    """
    linear = model.get_submodule(spec.name)
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{spec.name} is a {type(linear).__name__}, not a linear layer")
    try:
        layer = UnpackedLinear(weight, linear.bias, dtype)
    except ValueError as error:
        raise ValueError(f"{spec.name}: {error}") from None
    put_module(model, spec.name, layer)
    return layer


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule called `name`."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def quantized_layers(model: nn.Module) -> dict[str, QuantLinear]:
    """Collect all quantized layers of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantLinear)}
