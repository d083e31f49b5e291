"""Writing of the graphs of an export, one file for the nodes and one for the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onnx import ModelProto
from torch import Tensor

from ....model.families import EMBEDDING
from ..source import ExportSource
from .embedding import RAW_FILE, build_embedding, write_raw_table
from .external_data import ExternalData
from .graph import GraphBuilder, save_model, signature
from .linear import Weights
from .prefill import prefill_model
from .tensor_parallel import RankWeights
from .text_graph import Reduction, TextGraph
from .vision_graph import TowerGraph


@dataclass
class GraphWriter:
    """Writer of the graphs of a checkpoint into a folder.

    Args:
        source: the checkpoint.
        folder: existing.
    """

    source: ExportSource
    folder: Path
    graphs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """File, inputs and outputs of every graph that was written."""

    def vision(self, patches: int | None) -> None:
        """Write the tower, for a fixed number of patches or any."""
        vision = self.source.config.vision
        self.write("vision", lambda g: TowerGraph(g, self.source, vision, patches).build())

    def embedding(self) -> dict[str, Any]:
        """Write the embedding as a graph; returns its description."""
        text = self.source.config.text
        self.write("embedding", lambda g: build_embedding(g, self.source, text.hidden_size))
        described = {"file": "embedding.onnx", "shape": [text.vocab_size, text.hidden_size]}
        if scheme := self.source.schemes.get(EMBEDDING):
            return {**described, "dtype": scheme.label}
        dtype = str(self.source.reader.dtype(f"{EMBEDDING}.weight"))
        return {**described, "dtype": dtype.removeprefix("torch.")}

    def raw_embedding(self) -> dict[str, Any]:
        """Write the embedding as raw fp16; returns its description."""
        table = self.source.weight(EMBEDDING)
        assert isinstance(table, Tensor)  # quantized ones are refused before
        return {"file": RAW_FILE, **write_raw_table(table, self.folder / RAW_FILE)}

    def text(self, prefill: int | None) -> None:
        """Write the decoder and, for a number of tokens, its graph for such a prompt."""
        self._decoder("", self.source, 1, prefill)

    def shards(self, ranks: int, prefill: int | None) -> dict[str, Any]:
        """Write the parts of all ranks; returns the description of their reductions."""
        for rank in range(ranks):
            weights = RankWeights(self.source, rank, ranks)
            reductions = self._decoder(f".rank{rank}", weights, ranks, prefill)
        return {"ranks": ranks, "reductions": [asdict(each) for each in reductions]}

    def _decoder(
        self, suffix: str, weights: Weights, ranks: int, prefill: int | None
    ) -> list[Reduction]:
        config = self.source.config
        deepstack = len(config.vision.deepstack_visual_indexes)
        reductions: list[Reduction] = []

        def build(graph: GraphBuilder) -> None:
            TextGraph(graph, weights, config.text, deepstack, ranks, reductions).build()

        model = self.write(f"text{suffix}", build)
        if prefill is not None:
            self._save(f"prefill{suffix}", prefill_model(model, prefill))
        return reductions

    def write(self, name: str, build: Callable[[GraphBuilder], None]) -> ModelProto:
        """Write the graph that a function adds to an empty one; returns its model."""
        with ExternalData(self.folder / f"{name}.onnx.data") as data:
            graph = GraphBuilder(name, data)
            build(graph)
        model = graph.model()
        self._save(name, model)
        return model

    def _save(self, name: str, model: ModelProto) -> None:
        file = f"{name}.onnx"
        save_model(model, self.folder / file)
        self.graphs[name] = {"file": file, **signature(model.graph)}
