"""Quantization targets: a name, a weight seen as `[out_features, in_features]`, an input tap.

`LinearSpec` carries name and tap; this module is the only one that knows how the weight is stored
in the model. A family whose weights are not `nn.Linear` (experts in one 3-D tensor) extends these
functions; methods, plan and writers never look at modules.
"""

import torch
from torch import Tensor, nn

from ..model.families import LinearSpec
from .compressed_weight import CompressedWeight
from .runtime.compressed_linear import CompressedLinear
from .runtime.linear import QuantLinear


def weight_of(model: nn.Module, spec: LinearSpec) -> Tensor:
    """Return the weight of a target, `[out_features, in_features]`; a view, not a copy.

    Raises:
        ValueError: the layer is quantized already or differs from the family table.
    """
    module = model.get_submodule(spec.name)
    if isinstance(module, CompressedLinear):
        raise ValueError(f"{spec.name} is quantized already; start from the original model")
    weight = getattr(module, "weight", None)
    expected = (spec.out_features, spec.in_features)
    if not isinstance(weight, Tensor) or tuple(weight.shape) != expected:
        actual = "no weight" if not isinstance(weight, Tensor) else f"{tuple(weight.shape)}"
        raise ValueError(f"{spec.name} has {actual}; the family table says {expected}")
    return weight.detach()


def put_compressed(
    model: nn.Module, spec: LinearSpec, weight: CompressedWeight
) -> CompressedLinear:
    """Replace a target by a compressed layer for inference, which keeps the bias.

    Raises:
        ValueError: the target is not a linear layer, or its bias does not fit a checkpoint.
    """
    layer = put_calibrating(model, spec, weight)
    layer = layer.quantized().inference_layer(layer.bias)
    put_module(model, spec.name, layer)
    return layer


def put_calibrating(
    model: nn.Module, spec: LinearSpec, weight: CompressedWeight, dtype: torch.dtype | None = None
) -> CompressedLinear:
    """Replace a target by a compressed layer for the rest of the calibration, with its bias.

    Args:
        model: the model.
        spec: the target.
        weight: its compressed weight.
        dtype: of the layer's inputs; None if it will not run.

    Raises:
        ValueError: the target is not a linear layer, or its bias does not fit a checkpoint.
    """
    linear = model.get_submodule(spec.name)
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{spec.name} is a {type(linear).__name__}, not a linear layer")
    try:
        layer = weight.calibration_layer(linear.bias, dtype)
    except ValueError as error:
        raise ValueError(f"{spec.name}: {error}") from None
    put_module(model, spec.name, layer)
    return layer


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule called `name`."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def compressed_layers(model: nn.Module) -> dict[str, CompressedLinear]:
    """Collect all compressed layers of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, CompressedLinear)}


def quantized_layers(model: nn.Module) -> dict[str, QuantLinear]:
    """Collect the layers of a model whose weights are integers, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantLinear)}
