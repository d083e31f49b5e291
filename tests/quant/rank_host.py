"""The shards of a decoder, run part by part with onnxruntime; the host adds the partial results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import ModelProto, helper
from onnx_host import Array


class RankHost:
    """All ranks of an export, cut at its reductions.

    Args:
        folder: of the export.
    """

    def __init__(self, folder: Path) -> None:
        about = json.loads((folder / "export.json").read_text())
        self.reductions = about["tensor_parallel"]["reductions"]
        self.ranks = range(about["tensor_parallel"]["ranks"])
        self.files = [folder / about["graphs"][f"text.rank{rank}"]["file"] for rank in self.ranks]

    def logits(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Logits of each rank.

        Args:
            inputs: of the whole decoder; caches are divided by heads.
        """
        known = [self._of_rank(inputs, rank) for rank in self.ranks]
        for reduction in self.reductions:
            partials = [self._run(rank, reduction["partial"], known[rank]) for rank in self.ranks]
            for values in known:
                values[reduction["sum"]] = np.stack(partials).sum(0)
        return [self._run(rank, "logits", known[rank]) for rank in self.ranks]

    def _of_rank(self, inputs: Mapping[str, Array], rank: int) -> dict[str, Array]:
        def part(name: str, value: Array) -> Array:
            is_cache = name.startswith("past")
            return np.split(value, len(self.ranks), axis=1)[rank] if is_cache else value

        return {name: part(name, value) for name, value in inputs.items()}

    def _run(self, rank: int, output: str, known: Mapping[str, Array]) -> Array:
        """Compute a value of a shard from the inputs and the sums that are known."""
        part = cut(self.files[rank], output, known)
        path = self.files[rank].with_name("part.onnx")
        path.write_bytes(part.SerializeToString())
        session = onnxruntime.InferenceSession(str(path))
        feeds = {each.name: known[each.name] for each in part.graph.input}
        value: Array = session.run([output], feeds)[0]
        return value


def cut(file: Path, output: str, known: Mapping[str, Array]) -> ModelProto:
    """Return the part of a graph that computes a value from others."""
    model = onnx.load(file, load_external_data=False)
    producers = {name: node for node in model.graph.node for name in node.output}
    needed, open_values = set(), [output]
    while open_values:
        name = open_values.pop()
        if name in known or name not in producers or producers[name].name in needed:
            continue
        needed.add(producers[name].name)
        open_values.extend(each for each in producers[name].input if each)
    nodes = [node for node in model.graph.node if node.name in needed]
    read = {name for node in nodes for name in node.input}
    types = {np.dtype("float32"): onnx.TensorProto.FLOAT, np.dtype("int64"): onnx.TensorProto.INT64}
    inputs = [
        helper.make_tensor_value_info(name, types[known[name].dtype], known[name].shape)
        for name in known
        if name in read
    ]
    result = helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
    weights = [each for each in model.graph.initializer if each.name in read]
    graph = helper.make_graph(nodes, "part", inputs, [result], weights)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
