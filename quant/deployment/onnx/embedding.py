"""The token embedding: a graph, or a raw table of fp16 numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....model.families import EMBEDDING
from ...checkpoint.formats.format import integers_of
from ...compressed_weight import CompressedWeight
from .blocks import encode_blocks
from .graph import MICROSOFT, GraphBuilder
from .linear import Weights
from .text_graph import BATCH, NEW

RAW_FILE = "embed_tokens.bin"
ROWS = 2**14  # of the raw table that are converted at a time, to bound the memory
GATHER_BITS = 4  # smallest width that GatherBlockQuantized reads


def build_embedding(graph: GraphBuilder, weights: Weights, hidden_size: int) -> None:
    """Add the lookup, int64 [B, S] to float32 [B, S, hidden_size], to an empty graph.

    Raises:
        ValueError: a quantized table cannot be encoded.
    """
    ids = graph.input("input_ids", "int64", (BATCH, NEW))
    graph.output("inputs_embeds", "float32", (BATCH, NEW, hidden_size))
    add_lookup(graph, weights, ids, output="inputs_embeds")


def add_lookup(graph: GraphBuilder, weights: Weights, ids: str, *, output: str = "") -> str:
    """Add the lookup, int64 [B, S] to float32 [B, S, hidden_size]; returns its result.

    Raises:
        ValueError: a quantized table cannot be encoded.
    """
    table = weights.weight(EMBEDDING)
    if not isinstance(table, Tensor):
        return _add_quantized(graph, table, ids, output)
    stored = graph.weight(f"{EMBEDDING}.weight", table)
    if table.dtype == torch.float32:
        return graph.node("Gather", stored, ids, axis=0, output=output)
    return graph.cast(graph.node("Gather", stored, ids, axis=0), table, output=output)


def _add_quantized(graph: GraphBuilder, table: CompressedWeight, ids: str, output: str) -> str:
    """Add the lookup of integer rows, whose blocks are those of MatMulNBits."""
    try:
        encoded = encode_blocks(integers_of(table), least_bits=GATHER_BITS)
    except ValueError as error:
        raise ValueError(f"{EMBEDDING}: {error}") from None
    # Rows end with their features, not with a whole block.
    width = table.in_features * encoded.bits // 8
    return graph.node(
        "GatherBlockQuantized",
        graph.weight(f"{EMBEDDING}.codes", encoded.codes.flatten(1)[:, :width]),
        ids,
        graph.weight(f"{EMBEDDING}.scales", encoded.scales),
        graph.weight(f"{EMBEDDING}.zero_points", encoded.zero_points),
        domain=MICROSOFT,
        output=output,
        bits=encoded.bits,
        block_size=encoded.block_size,
        gather_axis=0,
        quantize_axis=1,
    )


def write_raw_table(table: Tensor, path: Path) -> dict[str, Any]:
    """Write a float table as raw fp16, row-major, little-endian.

    Args:
        table: [vocab, hidden], any float dtype.
        path: of the file.

    Returns:
        `dtype`, `shape`, and `changed`, the number of entries that fp16 does not represent.

    Raises:
        ValueError: an entry is outside the range of fp16.
    """
    changed = 0
    with path.open("wb") as file:
        for rows in torch.split(table, ROWS):
            half = rows.to(torch.float16)
            if not bool(torch.isfinite(half).all()):
                raise ValueError(
                    f"{EMBEDDING} has entries up to {float(rows.abs().max()):g}; allowed in "
                    f"{RAW_FILE}: the range of fp16, up to 65504; use --embedding graph"
                )
            changed += int((half.float() != rows.float()).sum())
            file.write(half.contiguous().numpy().data)
    return {"dtype": "float16", "shape": list(table.shape), "changed": changed}
