"""What can be quantized: a name, a weight seen as ``[out_features, in_features]``, an input tap.

`LinearSpec` carries name and tap; this file is the only place that knows how the weight lies in the
model. A family whose weights are no `nn.Linear` (experts in one 3-D tensor) extends these
functions; algorithms, plan and writers never look at modules.
"""

from torch import Tensor, nn

from ..model.families import LinearSpec
from .methods.affine import QuantizedWeight
from .runtime.linear import QuantLinear


def weight_of(model: nn.Module, spec: LinearSpec) -> Tensor:
    """The weight of a target, ``[out_features, in_features]``; a view, not a copy.

    Raises:
        ValueError: the layer is quantized already or is not what the family table says.
    """
    module = model.get_submodule(spec.name)
    if isinstance(module, QuantLinear):
        raise ValueError(f"{spec.name} is quantized already; start from the original model")
    weight = getattr(module, "weight", None)
    wanted = (spec.out_features, spec.in_features)
    if not isinstance(weight, Tensor) or tuple(weight.shape) != wanted:
        found = "no weight" if not isinstance(weight, Tensor) else f"{tuple(weight.shape)}"
        raise ValueError(f"{spec.name} has {found}; the family table says {wanted}")
    return weight.detach()


def put_quantized(model: nn.Module, spec: LinearSpec, weight: QuantizedWeight) -> None:
    """Put a quantized layer in the place of a target, keeping its bias.

    Raises:
        ValueError: the bias does not fit a checkpoint.
    """
    linear = model.get_submodule(spec.name)
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{spec.name} is a {type(linear).__name__}, not a linear layer")
    try:
        layer = QuantLinear.from_linear(linear, weight)
    except ValueError as error:
        raise ValueError(f"{spec.name}: {error}") from None
    put_module(model, spec.name, layer)


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule called `name`."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def quantized_layers(model: nn.Module) -> dict[str, QuantLinear]:
    """All quantized layers of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantLinear)}
