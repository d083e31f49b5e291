"""Parts of a graph that the towers and the decoder share: norms, rotation, attention, SiLU."""

from __future__ import annotations

from collections.abc import Sequence

from .graph import GraphBuilder
from .linear import Weights


def add_rms_norm(graph: GraphBuilder, weights: Weights, x: str, name: str, epsilon: float) -> str:
    """Add an RMSNorm over the last dimension; `name` is its canonical name."""
    with graph.scope(name):
        scale = graph.widened(f"{name}.weight", weights.tensor(f"{name}.weight"))
        return graph.node("RMSNormalization", x, scale, axis=-1, epsilon=epsilon)


def add_layer_norm(graph: GraphBuilder, weights: Weights, x: str, name: str, epsilon: float) -> str:
    """Add a LayerNorm over the last dimension; `name` is its canonical name."""
    with graph.scope(name):
        parameters = [
            graph.widened(f"{name}.{part}", weights.tensor(f"{name}.{part}"))
            for part in ("weight", "bias")
        ]
        return graph.node("LayerNormalization", x, *parameters, axis=-1, epsilon=epsilon)


def add_rotation(graph: GraphBuilder, x: str, cos: str, sin: str, heads: int) -> str:
    """Add the rotation of the channel pairs (i, i + D/2) of every head.

    Args:
        graph: to add to.
        x: float32 [B, S, heads * D].
        cos: float32 [B, S, D/2].
        sin: float32 [B, S, D/2].
        heads: their number.
    """
    return graph.node("RotaryEmbedding", x, cos, sin, num_heads=heads, interleaved=0)


def add_attention(
    graph: GraphBuilder,
    q: str,
    k: str,
    v: str,
    mask: str,
    heads: int,
    kv_heads: int,
    *,
    past: Sequence[str] = (),
    present: Sequence[str] = (),
) -> str:
    """Add scaled dot-product attention with grouped queries.

    Args:
        graph: to add to.
        q: float32 [B, S, heads * D].
        k: float32 [B, S, kv_heads * D].
        v: float32 [B, S, kv_heads * D].
        mask: bool, broadcastable to [B, heads, S, all tokens]: True where a token may attend.
        heads: number of heads.
        kv_heads: number of heads of keys and values.
        past: cached keys and values, float32 [B, kv_heads, T, D]; empty without a cache.
        present: names of the keys and values with the new tokens; empty without a cache.

    Returns:
        The output, float32 [B, S, heads * D].
    """
    return graph.nodes(
        "Attention",
        [q, k, v, mask, *past],
        ["", *present],
        q_num_heads=heads,
        kv_num_heads=kv_heads,
    )[0]


def add_silu(graph: GraphBuilder, x: str) -> str:
    """Add x * sigmoid(x)."""
    return graph.node("Mul", x, graph.node("Sigmoid", x))
