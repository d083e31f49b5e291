"""Graph of the decoder: embeddings to logits, with the KV cache as inputs and outputs.

See docs/onnx.md for the inputs. Letters in shapes: B prompts, S new tokens, T cached tokens, R
tokens whose logits are computed, H hidden size, D head size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx import TensorProto

from ....model.config import TextConfig
from ....model.families import EMBEDDING
from ....model.features import DEEPSTACK
from .graph import MICROSOFT, GraphBuilder
from .layers import add_attention, add_rms_norm, add_rotation, add_silu
from .linear import Weights, add_linear, add_product

BATCH, NEW, PAST, ALL, ROWS = "batch", "sequence", "past", "total", "rows"
"""Names of dimensions: B, S, T, T + S, R."""
PARTS = ("key", "value")
HEAD = "lm_head"


@dataclass(frozen=True)
class Reduction:
    """A sum over all ranks of tensor parallelism."""

    partial: str
    """Value of one rank."""
    sum: str


@dataclass
class TextGraph:
    """Builder of the graph of a decoder, or of the part of one rank.

    Args:
        graph: an empty one.
        weights: source of the weights, those of the rank.
        config: sizes of the whole decoder.
        deepstack: number of features that layers add to hidden states.
        ranks: that the decoder is divided among.
    """

    graph: GraphBuilder
    weights: Weights
    config: TextConfig
    deepstack: int
    ranks: int = 1
    reductions: list[Reduction] = field(default_factory=list)
    """Sums over ranks, in the order of computation; empty for one rank."""

    def build(self) -> None:
        """Add the whole decoder."""
        graph, config = self.graph, self.config
        hidden = graph.input("inputs_embeds", "float32", (BATCH, NEW, config.hidden_size))
        angles = (BATCH, NEW, config.head_dim // 2)
        cos, sin = graph.input("cos", "float32", angles), graph.input("sin", "float32", angles)
        mask = self._mask(graph.input("attention_mask", "int64", (BATCH, ALL)), hidden)
        rows = graph.input("logits_index", "int64", (BATCH, ROWS))
        added = [
            graph.input(f"{DEEPSTACK}{index}", "float32", (BATCH, NEW, config.hidden_size))
            for index in range(self.deepstack)
        ]
        for index in range(config.num_hidden_layers):
            hidden = self._layer(index, hidden, cos, sin, mask)
            if index < len(added):
                hidden = graph.node("Add", hidden, added[index])
        self._logits(hidden, rows)

    def _mask(self, tokens: str, embeds: str) -> str:
        """Add the mask: tokens that are no pads and not later; returns bool [B, 1, S, T + S]."""
        graph = self.graph
        with graph.scope("mask"):
            valid = graph.node("Cast", tokens, to=TensorProto.BOOL)
            valid = graph.node("Unsqueeze", valid, graph.constant([1, 2]))
            axis = graph.constant([0])
            count = graph.node("Squeeze", graph.node("Shape", tokens, start=1, end=2), axis)
            new = graph.node("Squeeze", graph.node("Shape", embeds, start=1, end=2), axis)
            step = graph.constant(1)
            keys = graph.node("Range", graph.constant(0), count, step)
            queries = graph.node("Range", graph.node("Sub", count, new), count, step)
            causal = graph.node(
                "LessOrEqual",
                graph.node("Unsqueeze", keys, axis),
                graph.node("Unsqueeze", queries, graph.constant([1])),
            )
            return graph.node("And", causal, valid)

    def _layer(self, index: int, hidden: str, cos: str, sin: str, mask: str) -> str:
        """Add one decoder layer, [B, S, H] to [B, S, H]."""
        graph, weights, name = self.graph, self.weights, f"model.layers.{index}"
        epsilon = self.config.rms_norm_eps
        x = add_rms_norm(graph, weights, hidden, f"{name}.input_layernorm", epsilon)
        mixed = self._attention(index, x, f"{name}.self_attn", cos, sin, mask)
        hidden = graph.node("Add", hidden, self._summed(mixed, f"{name}.self_attn.o_proj"))
        x = add_rms_norm(graph, weights, hidden, f"{name}.post_attention_layernorm", epsilon)
        gate = add_silu(graph, add_linear(graph, weights, x, f"{name}.mlp.gate_proj"))
        up = add_linear(graph, weights, x, f"{name}.mlp.up_proj")
        inner = graph.node("Mul", gate, up)
        return graph.node("Add", hidden, self._summed(inner, f"{name}.mlp.down_proj"))

    def _attention(self, index: int, x: str, name: str, cos: str, sin: str, mask: str) -> str:
        """Add attention without its output projection, [B, S, H] to [B, S, heads * D]."""
        graph, weights, config = self.graph, self.weights, self.config
        heads = config.num_attention_heads // self.ranks
        kv_heads = config.num_key_value_heads // self.ranks
        q, k, v = (
            add_linear(graph, weights, x, f"{name}.{layer}", bias=config.qkv_bias)
            for layer in ("q_proj", "k_proj", "v_proj")
        )
        with graph.scope(name):
            if config.qk_norm:
                q = self._head_norm(q, f"{name}.q_norm", heads)
                k = self._head_norm(k, f"{name}.k_norm", kv_heads)
            q = add_rotation(graph, q, cos, sin, heads)
            k = add_rotation(graph, k, cos, sin, kv_heads)
            past = [f"past_key_values.{index}.{part}" for part in PARTS]
            present = [f"present.{index}.{part}" for part in PARTS]
            for before, after in zip(past, present, strict=True):
                graph.input(before, "float32", (BATCH, kv_heads, PAST, config.head_dim))
                graph.output(after, "float32", (BATCH, kv_heads, ALL, config.head_dim))
            return add_attention(graph, q, k, v, mask, heads, kv_heads, past=past, present=present)

    def _head_norm(self, x: str, name: str, heads: int) -> str:
        """Add the norm of every head, [B, S, heads * D] to the same."""
        graph, width = self.graph, self.config.head_dim
        split = graph.node("Reshape", x, graph.constant([0, 0, heads, width]))
        normed = add_rms_norm(graph, self.weights, split, name, self.config.rms_norm_eps)
        return graph.node("Reshape", normed, graph.constant([0, 0, heads * width]))

    def _summed(self, x: str, name: str) -> str:
        """Add a layer whose inputs are divided among the ranks, and the sum over them."""
        if self.ranks == 1:
            return add_linear(self.graph, self.weights, x, name)
        reduction = Reduction(f"{name}.partial", f"{name}.sum")
        self.reductions.append(reduction)
        partial = add_linear(self.graph, self.weights, x, name, output=reduction.partial)
        return self.graph.node("AllReduce", partial, output=reduction.sum, domain=MICROSOFT)

    def _logits(self, hidden: str, rows: str) -> str:
        """Add final norm and head for the chosen tokens; returns [B, R, vocab]."""
        graph, weights, config = self.graph, self.weights, self.config
        index = graph.node("Unsqueeze", rows, graph.constant([-1]))
        chosen = graph.node("GatherND", hidden, index, batch_dims=1)
        normed = add_rms_norm(graph, weights, chosen, "model.norm", config.rms_norm_eps)
        graph.output("logits", "float32", (BATCH, ROWS, config.vocab_size))
        if not config.tie_word_embeddings:
            return add_linear(graph, weights, normed, HEAD, output="logits")
        table = weights.tensor(f"{EMBEDDING}.weight")
        with graph.scope(HEAD):
            return add_product(graph, normed, table, f"{HEAD}.weight", output="logits")
