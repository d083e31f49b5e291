"""Writing of the graphs of an export for onnxruntime-genai."""

from __future__ import annotations

from .....model.families import family_of
from .....model.rope import decoder_frequencies, mrope_axes
from ..embedding import add_lookup
from ..graph import GraphBuilder
from ..text_graph import BATCH, NEW, ROWS, TextGraph
from ..vision_graph import TowerGraph
from ..writing import GraphWriter
from .computed_inputs import add_grid_inputs, add_image_rows, add_position_inputs


def write_vision(writer: GraphWriter) -> None:
    """Write the tower for one image of any size; the runtime runs it once per image."""
    vision = writer.source.config.vision

    def build(graph: GraphBuilder) -> None:
        add_grid_inputs(graph, vision)
        TowerGraph(graph, writer.source, vision, None).build()

    writer.write("vision", build)


def write_embedding(writer: GraphWriter) -> None:
    """Write the embedding, which puts features of images in the places of their tokens."""
    config = writer.source.config
    width = config.text.hidden_size

    def build(graph: GraphBuilder) -> None:
        ids = graph.input("input_ids", "int64", (BATCH, NEW))
        embeds = add_lookup(graph, writer.source, ids)
        graph.output("inputs_embeds", "float32", (BATCH, NEW, width))
        add_image_rows(graph, ids, embeds, config.image_token_id, width, "inputs_embeds")

    writer.write("embedding", build)


def write_text(writer: GraphWriter) -> None:
    """Write the decoder, with the logits of the last token only."""
    config = writer.source.config
    frequencies, scale = decoder_frequencies(config.text)
    axes = mrope_axes(config.text, family_of(config).mrope_layout)

    def build(graph: GraphBuilder) -> None:
        graph.sizes[ROWS] = 1
        add_position_inputs(graph, frequencies, axes, scale)
        TextGraph(graph, writer.source, config.text, deepstack=0).build()

    writer.write("text", build)
