"""Nodes that compute inputs of the graphs from the values that onnxruntime-genai passes.

They are `image_grid_thw` and `position_ids`. Angles, segments and windows follow from them by the
rules of docs/onnx.md, "Host program".

Letters in shapes: P patches, B prompts, S new tokens, D width of one head.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto
from torch import Tensor

from .....model.config import VisionConfig
from .....model.rope import vision_frequencies
from ..graph import GraphBuilder
from ..text_graph import BATCH, NEW

GRID, POSITIONS = "image_grid_thw", "position_ids"


def add_grid_inputs(graph: GraphBuilder, vision: VisionConfig) -> None:
    """Compute the inputs of a tower from the grid of one image, int64 [1, 3]: t, h, w."""
    grid = graph.input(GRID, "int64", (1, 3))
    with graph.scope("grid"):
        flat = graph.node("Squeeze", grid, graph.constant([0]))
        count = graph.node("ReduceProd", flat, keepdims=0)
        patches = graph.node("Range", graph.constant(0), count, graph.constant(1))
        _, height, width = graph.nodes("Split", [flat], ["", "", ""], axis=0, num_outputs=3)
        frame, inside = divided(graph, patches, graph.node("Mul", height, width))
        token, inner = divided(graph, inside, graph.constant([vision.merge_unit]))
        merge = graph.constant([vision.spatial_merge_size])
        across = graph.node("Div", width, merge)
        token_coordinates = divided(graph, token, across)
        inner_coordinates = divided(graph, inner, merge)
        coordinates = [
            graph.node("Add", graph.node("Mul", of_token, merge), of_patch)
            for of_token, of_patch in zip(token_coordinates, inner_coordinates, strict=True)
        ]
        graph.computed["cos"], graph.computed["sin"] = _angles(graph, coordinates, vision)
        graph.computed["segments"] = frame
        if vision.is_windowed:
            side = graph.constant([vision.window_size // vision.pixel_factor])
            row, column = (graph.node("Div", coordinate, side) for coordinate in token_coordinates)
            # Fewer windows than patches in both directions, so that the numbers are unique.
            above = graph.node("Add", graph.node("Mul", frame, height), row)
            window = graph.node("Add", graph.node("Mul", above, width), column)
            graph.computed["window_segments"] = window


def divided(graph: GraphBuilder, value: str, divisor: str) -> tuple[str, str]:
    """Add quotient and remainder of integers that are not negative."""
    return graph.node("Div", value, divisor), graph.node("Mod", value, divisor)


def _angles(graph: GraphBuilder, coordinates: list[str], vision: VisionConfig) -> tuple[str, str]:
    """Add cosine and sine of rows and columns, float32 [1, P, D/2] each."""
    frequencies = graph.constant(vision_frequencies(vision.head_dim).numpy(), np.float32)
    last = graph.constant([-1])
    parts = []
    for coordinate in coordinates:
        column = graph.node("Unsqueeze", graph.node("Cast", coordinate, to=TensorProto.FLOAT), last)
        parts.append(graph.node("Mul", column, frequencies))
    angles = graph.node("Unsqueeze", graph.node("Concat", *parts, axis=-1), graph.constant([0]))
    return graph.node("Cos", angles), graph.node("Sin", angles)


def add_position_inputs(
    graph: GraphBuilder, frequencies: Tensor, axes: Tensor, scale: float
) -> None:
    """Compute the inputs of a decoder from position ids, int64 [3, B, S]: time, height, width.

    The logits are those of the last token of every prompt.

    Args:
        graph: an empty one.
        frequencies: float32 [D/2].
        axes: int64 [D/2]: axis of every frequency.
        scale: factor of cosine and sine.
    """
    ids = graph.input(POSITIONS, "int64", (3, BATCH, NEW))
    with graph.scope("positions"):
        chosen = graph.node("Gather", ids, graph.constant(axes.numpy()), axis=0)
        rows = graph.node("Transpose", chosen, perm=[1, 2, 0])
        values = graph.node("Cast", rows, to=TensorProto.FLOAT)
        angles = graph.node("Mul", values, graph.constant(frequencies.numpy(), np.float32))
        for name, operator in (("cos", "Cos"), ("sin", "Sin")):
            value = graph.node(operator, angles)
            factor = graph.constant(scale, np.float32)
            graph.computed[name] = graph.node("Mul", value, factor)
        batch = graph.node("Shape", ids, start=1, end=2)
        last = graph.node("Sub", graph.node("Shape", ids, start=2, end=3), graph.constant([1]))
        shape = graph.node("Concat", batch, graph.constant([1]), axis=0)
        graph.computed["logits_index"] = graph.node("Expand", last, shape)


def add_image_rows(
    graph: GraphBuilder, ids: str, embeds: str, image_token: int, hidden_size: int, output: str
) -> None:
    """Replace the embeddings of placeholder tokens by features of images.

    Args:
        graph: to add to; it gets the input `image_features`, float32 [tokens, hidden_size].
        ids: token ids, int64 [B, S].
        embeds: their embeddings, float32 [B, S, hidden_size].
        image_token: id of the placeholder token; as many of them as features.
        hidden_size: width of an embedding.
        output: name of the result, of the shape of `embeds`.
    """
    features = graph.input("image_features", "float32", ("image_tokens", hidden_size))
    with graph.scope("images"):
        coordinates = graph.node("NonZero", graph.node("Equal", ids, graph.constant(image_token)))
        index = graph.node("Transpose", coordinates, perm=[1, 0])
        graph.node("ScatterND", embeds, index, features, output=output)
