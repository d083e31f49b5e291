"""Linear layers of a graph: MatMulNBits for integers, MatMul for floats."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from ...checkpoint.formats.format import integers_of
from ...compressed_weight import CompressedWeight
from .blocks import encode_blocks
from .graph import MICROSOFT, GraphBuilder

ACCURACY_LEVEL = 1
"""Of MatMulNBits: inputs and products in fp32. Without it a runtime may choose another level, and 4
rounds the inputs to int8."""


class Weights(Protocol):
    """Source of the weights of a graph, by canonical names."""

    def weight(self, name: str) -> CompressedWeight | Tensor:
        """Read the weight of a linear layer, see `ExportSource.weight`."""
        ...

    def tensor(self, name: str) -> Tensor:
        """Read a float tensor, see `ExportSource.tensor`."""
        ...


def add_linear(
    graph: GraphBuilder,
    weights: Weights,
    x: str,
    name: str,
    *,
    bias: bool = False,
    output: str = "",
) -> str:
    """Add a linear layer of a checkpoint.

    Args:
        graph: to add to.
        weights: source of the weight and the bias.
        x: input, float32 [..., in_features].
        name: canonical name of the layer.
        bias: whether it has a bias.
        output: name of the result; "" chooses one.

    Returns:
        The output, float32 [..., out_features].

    Raises:
        ValueError: the weight cannot be encoded, see `encode_blocks`.
    """
    product = "" if bias else output
    weight = weights.weight(name)
    with graph.scope(name):
        if isinstance(weight, Tensor):
            y = add_product(graph, x, weight, f"{name}.weight", output=product)
        else:
            y = _add_quantized(graph, x, weight, name, product)
        if bias:
            added = graph.widened(f"{name}.bias", weights.tensor(f"{name}.bias"))
            y = graph.node("Add", y, added, output=output)
    return y


def add_product(graph: GraphBuilder, x: str, weight: Tensor, name: str, *, output: str = "") -> str:
    """Add a product with a float matrix in its own dtype.

    Args:
        graph: to add to.
        x: input, float32 [..., in_features].
        weight: [out_features, in_features].
        name: of the initializer.
        output: name of the result; "" chooses one.

    Returns:
        The output, float32 [..., out_features].
    """
    stored = graph.weight(name, weight.t())
    return graph.node("MatMul", x, graph.cast(stored, weight), output=output)


def _add_quantized(
    graph: GraphBuilder, x: str, weight: CompressedWeight, name: str, output: str
) -> str:
    try:
        encoded = encode_blocks(integers_of(weight))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    inputs = [
        x,
        graph.weight(f"{name}.codes", encoded.codes),
        graph.weight(f"{name}.scales", encoded.scales),
    ]
    if not encoded.has_midpoints:  # the default of the operator
        inputs.append(graph.weight(f"{name}.zero_points", encoded.zero_points))
    return graph.node(
        "MatMulNBits",
        *inputs,
        output=output,
        domain=MICROSOFT,
        K=weight.in_features,
        N=weight.out_features,
        bits=encoded.bits,
        block_size=encoded.block_size,
        accuracy_level=ACCURACY_LEVEL,
    )
