"""Quantization targets: a name, a weight seen as `[out_features, in_features]`, an input tap.

`LinearSpec` carries name, tap and, for an expert of a mixture-of-experts block, the slice of the
tensor with its weight. In a model a target is a module of its name, an `nn.Linear` or an
`ExpertLinear`, which is replaced by a `CompressedLinear`, or the token embedding, which is replaced
by a `QuantEmbedding`. In a checkpoint it has tensors of its own names, also where the float weights
of all experts are one tensor.
"""

import torch
from torch import Tensor, nn

from ..model.expert_linear import ExpertLinear
from ..model.families import LinearSpec
from ..model.token_table import TokenTable
from .compressed_weight import CompressedWeight
from .runtime.compressed_linear import CompressedLayer, CompressedLinear
from .runtime.embedding import QuantEmbedding
from .runtime.linear import QuantLinear


def weight_of(model: nn.Module, spec: LinearSpec) -> Tensor:
    """Return the weight of a target, `[out_features, in_features]`; a view, not a copy.

    Raises:
        ValueError: the layer is quantized already or differs from the family table.
    """
    module = model.get_submodule(spec.name)
    if isinstance(module, CompressedLayer):
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

    The float weight of an expert stays in the tensor of all experts, so that the target can be put
    back.

    Raises:
        ValueError: the target is not a linear layer, or its bias does not fit a checkpoint.
    """
    layer = _calibrating(model, spec, weight, None)
    layer = layer.quantized().inference_layer(layer.bias)
    put_module(model, spec.name, layer)
    return layer


def put_loaded(
    model: nn.Module, name: str, weight: CompressedWeight, bias: Tensor | None, like: Tensor
) -> None:
    """Replace a target by the layer of a compressed weight that was loaded from a checkpoint.

    Args:
        model: the model.
        name: of the target, a linear layer or the token embedding.
        weight: on the device where the layer will run.
        bias: `[out_features]` or None.
        like: has the device of the layer and the dtype of the model.

    Raises:
        ValueError: an embedding is not stored as plain integers.
    """
    is_table = isinstance(model.get_submodule(name), nn.Embedding | TokenTable)
    layer = QuantEmbedding(weight, like) if is_table else weight.inference_layer(bias)
    replace_module(model, name, layer)


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
    layer = _calibrating(model, spec, weight, dtype)
    replace_module(model, spec.name, layer)
    return layer


def _calibrating(
    model: nn.Module, spec: LinearSpec, weight: CompressedWeight, dtype: torch.dtype | None
) -> CompressedLinear:
    linear = model.get_submodule(spec.name)
    if not isinstance(linear, nn.Linear | ExpertLinear):
        raise ValueError(f"{spec.name} is a {type(linear).__name__}, not a linear layer")
    try:
        return weight.calibration_layer(linear.bias, dtype)
    except ValueError as error:
        raise ValueError(f"{spec.name}: {error}") from None


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace a target for good: a tensor of all experts is dropped with the last of them."""
    before = model.get_submodule(name)
    put_module(model, name, module)
    if isinstance(before, ExpertLinear):
        before.release()


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the submodule called `name`."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, module)


def compressed_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """Collect all compressed layers of a model by name, the token embedding too."""
    return {name: m for name, m in model.named_modules() if isinstance(m, CompressedLayer)}


def compressed_linears(model: nn.Module) -> dict[str, CompressedLinear]:
    """Collect the compressed linear layers of a model, which kernels compute, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, CompressedLinear)}


def quantized_layers(model: nn.Module) -> dict[str, QuantLinear]:
    """Collect the layers of a model whose weights are integers, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, QuantLinear)}
