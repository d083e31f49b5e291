"""The graph of a prompt of fixed length, derived from that of the decoder."""

from __future__ import annotations

import copy

from onnx import ModelProto, ValueInfoProto

from .text_graph import ALL, BATCH, NEW, ROWS

PAST_PREFIX = "past_key_values."


def prefill_model(model: ModelProto, length: int) -> ModelProto:
    """Fix the shapes of a decoder to one prompt of `length` tokens without a cache.

    Args:
        model: of `TextGraph`; it is not changed. Both share the external data.
        length: number of tokens, pads included.

    Returns:
        The model without the inputs `past_key_values`, for the logits of one token.
    """
    fixed = copy.deepcopy(model)
    graph = fixed.graph
    graph.name = "prefill"
    kept = [info for info in graph.input if not info.name.startswith(PAST_PREFIX)]
    del graph.input[:]
    graph.input.extend(kept)
    sizes = {BATCH: 1, NEW: length, ALL: length, ROWS: 1}
    for info in (*graph.input, *graph.output):
        _fix_shape(info, sizes)
    for node in graph.node:
        inputs = [name for name in node.input if not name.startswith(PAST_PREFIX)]
        del node.input[:]
        node.input.extend(inputs)
    return fixed


def _fix_shape(info: ValueInfoProto, sizes: dict[str, int]) -> None:
    for dim in info.type.tensor_type.shape.dim:
        if dim.dim_param:
            dim.dim_value = sizes[dim.dim_param]  # a oneof: this clears the name
