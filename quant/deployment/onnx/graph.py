"""Building of an ONNX graph, node by node.

Values are named by strings. All floats are computed in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnx import (
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    checker,
    helper,
    numpy_helper,
)
from torch import Tensor

from .... import __version__
from .external_data import ExternalData

OPSET, IR_VERSION = 23, 11
"""Version of the standard operators, and of the file format that introduced it."""
MICROSOFT = "com.microsoft"
"""Domain of onnxruntime's own operators, of version 1."""
TYPES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
"""Dtypes of inputs and outputs."""

Shape = Sequence[int | str]
"""Numbers and names of dimensions."""


class GraphBuilder:
    """A graph under construction.

    Args:
        name: of the graph.
        data: file for the weights.
    """

    def __init__(self, name: str, data: ExternalData) -> None:
        self.name, self.data = name, data
        self.computed: dict[str, str] = {}
        """Values of this graph that replace inputs, by the names of the inputs."""
        self.sizes: dict[str, int] = {}
        """Numbers of dimensions by name; others keep their names."""
        self._inputs: list[ValueInfoProto] = []
        self._outputs: list[ValueInfoProto] = []
        self._nodes: list[NodeProto] = []
        self._initializers: list[TensorProto] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._scope = ""

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of nodes; scopes can be nested."""
        outer = self._scope
        self._scope = f"{outer}{name}/"
        yield
        self._scope = outer

    def input(self, name: str, dtype: str, shape: Shape) -> str:
        """Add an input of a dtype in `TYPES`, unless it is computed; returns the value's name."""
        if name in self.computed:
            return self.computed[name]
        self._inputs.append(self._info(name, dtype, shape))
        return name

    def output(self, name: str, dtype: str, shape: Shape) -> None:
        """Declare the value of a node as output."""
        self._outputs.append(self._info(name, dtype, shape))

    def _info(self, name: str, dtype: str, shape: Shape) -> ValueInfoProto:
        numbers = [self.sizes.get(str(size), size) for size in shape]
        return helper.make_tensor_value_info(name, TYPES[dtype], numbers)

    def nodes(
        self,
        operator: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        domain: str = "",
        **attributes: Any,
    ) -> tuple[str, ...]:
        """Add a node with several outputs.

        Args:
            operator: its type.
            inputs: values; "" leaves an optional one out.
            outputs: names of the outputs; "" chooses one.
            domain: of the operator.
            attributes: of the operator.

        Returns:
            The names of the outputs.
        """
        label = f"{self._scope}{operator}_{len(self._nodes)}"
        names = [name or f"{label}:{index}" for index, name in enumerate(outputs)]
        node = helper.make_node(operator, inputs, names, name=label, domain=domain, **attributes)
        self._nodes.append(node)
        return tuple(names)

    def node(
        self,
        operator: str,
        *inputs: str,
        output: str = "",
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add a node with one output; returns its name, see `nodes`."""
        return self.nodes(operator, inputs, [output], domain=domain, **attributes)[0]

    def constant(self, value: npt.ArrayLike, dtype: npt.DTypeLike = np.int64) -> str:
        """Add a small constant to the graph itself; equal ones are stored once."""
        array = np.asarray(value, dtype)
        key = str(array.dtype), array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = name = f"constant_{len(self._constants)}"
            self._initializers.append(numpy_helper.from_array(array, name))
        return self._constants[key]

    def weight(self, name: str, tensor: Tensor) -> str:
        """Add a weight in its own dtype; returns its name."""
        self._initializers.append(self.data.add(name, tensor))
        return name

    def widened(self, name: str, tensor: Tensor) -> str:
        """Add a short float weight, widened to fp32 in the file; returns its name."""
        return self.weight(name, tensor.float())

    def cast(self, value: str, tensor: Tensor, output: str = "") -> str:
        """Widen a value of the dtype of `tensor` to fp32; returns the fp32 value.

        An fp32 value is returned as it is, so that an `output` is not named.
        """
        if tensor.dtype == torch.float32:
            return value
        return self.node("Cast", value, output=output, to=TensorProto.FLOAT)

    def model(self) -> ModelProto:
        """Return the finished model."""
        graph = helper.make_graph(
            self._nodes, self.name, self._inputs, self._outputs, self._initializers
        )
        domains = [helper.make_opsetid("", OPSET)]
        if any(node.domain == MICROSOFT for node in self._nodes):
            domains.append(helper.make_opsetid(MICROSOFT, 1))
        return helper.make_model(
            graph,
            opset_imports=domains,
            ir_version=IR_VERSION,
            producer_name="vlpress",
            producer_version=__version__,
        )


def save_model(model: ModelProto, path: Path) -> None:
    """Check a model whose external data is in the folder of `path`, and write it."""
    path.write_bytes(model.SerializeToString())
    checker.check_model(path)


def signature(graph: GraphProto) -> dict[str, list[dict[str, Any]]]:
    """Return name, dtype and shape of all inputs and outputs."""
    return {"inputs": list(map(_entry, graph.input)), "outputs": list(map(_entry, graph.output))}


def _entry(info: ValueInfoProto) -> dict[str, Any]:
    of_type = info.type.tensor_type
    dtype = next(name for name, number in TYPES.items() if number == of_type.elem_type)
    shape = [dim.dim_param or dim.dim_value for dim in of_type.shape.dim]
    return {"name": info.name, "dtype": dtype, "shape": shape}
