"""Graphs of the vision towers: patches to features of the decoder's width.

A patch attends to those with the same segment id: the number of its frame, or of its window in
blocks with window attention. This one rule also keeps pads from patches, and patches stay in merge
order. See docs/onnx.md for the inputs.

Letters in shapes: P patches, C width of the tower, D width of one head, H width of the decoder.
"""

from __future__ import annotations

from collections.abc import Callable

from ....model.config import VisionConfig
from ....model.features import DEEPSTACK
from ....model.vision import EPS
from .graph import GraphBuilder
from .layers import add_attention, add_layer_norm, add_rms_norm, add_rotation, add_silu
from .linear import Weights, add_linear, add_product

PATCHES, TOKENS = "patches", "tokens"
"""Names of dimensions that are not fixed."""
FEATURES = "image_features"
CORNERS = 4
"""Rows of the position table that a patch interpolates between."""

Normalize = Callable[[GraphBuilder, Weights, str, str, float], str]


class TowerGraph:
    """Builder of the graph of a tower.

    Args:
        graph: an empty one.
        weights: source of the weights.
        config: sizes of the tower.
        patches: number of patches, a multiple of the merge unit; None: any number.
    """

    def __init__(
        self, graph: GraphBuilder, weights: Weights, config: VisionConfig, patches: int | None
    ) -> None:
        self.graph, self.weights, self.config = graph, weights, config
        self.patches: int | str = patches or PATCHES
        self.tokens: int | str = patches // config.merge_unit if patches else TOKENS
        self.normalize: Normalize = add_rms_norm if config.norm == "rms" else add_layer_norm

    def build(self) -> None:
        """Add the whole tower."""
        graph, config = self.graph, self.config
        hidden = self._embedded()
        angles = (1, self.patches, config.head_dim // 2)
        cos, sin = graph.input("cos", "float32", angles), graph.input("sin", "float32", angles)
        frames = self._mask("segments")
        windows = self._mask("window_segments") if config.is_windowed else frames
        for index in range(config.depth):
            mask = frames if config.has_full_attention(index) else windows
            hidden = self._block(hidden, f"visual.blocks.{index}", cos, sin, mask)
            if index in config.deepstack_visual_indexes:
                number = config.deepstack_visual_indexes.index(index)
                name = f"visual.deepstack_merger_list.{number}"
                self._feature(self._normed_merger(hidden, name, f"{DEEPSTACK}{number}"))
        merger = self._normed_merger if config.position_side else self._merger
        self._feature(merger(hidden, "visual.merger", FEATURES))

    def _feature(self, name: str) -> None:
        self.graph.output(name, "float32", (self.tokens, self.config.out_hidden_size))

    def _embedded(self) -> str:
        """Add patch embedding and position table; returns [1, P, C]."""
        graph, config, name = self.graph, self.config, "visual.patch_embed.proj"
        pixels = graph.input("pixel_values", "float32", (self.patches, config.patch_dim))
        weight = self.weights.tensor(f"{name}.weight")
        with graph.scope(name):
            hidden = add_product(graph, pixels, weight.flatten(1), f"{name}.weight")
            if config.position_side:  # such towers have a bias there
                bias = graph.widened(f"{name}.bias", self.weights.tensor(f"{name}.bias"))
                hidden = graph.node("Add", hidden, bias)
        if config.position_side:
            hidden = graph.node("Add", hidden, self._positions())
        return graph.node("Unsqueeze", hidden, graph.constant([0]))

    def _positions(self) -> str:
        """Add the interpolation of the position table; returns [P, C]."""
        graph, name = self.graph, "visual.pos_embed.weight"
        shape = (CORNERS, self.patches)
        index = graph.input("position_index", "int64", shape)
        share = graph.input("position_weight", "float32", shape)
        table = self.weights.tensor(name)
        with graph.scope("visual.pos_embed"):
            rows = graph.node("Gather", graph.weight(name, table), index, axis=0)
            rows = graph.cast(rows, table)  # [4, P, C]
            scaled = graph.node("Mul", rows, graph.node("Unsqueeze", share, graph.constant([2])))
            return graph.node("ReduceSum", scaled, graph.constant([0]), keepdims=0)

    def _mask(self, name: str) -> str:
        """Add the comparison of segment ids; returns bool [P, P]."""
        graph = self.graph
        segments = graph.input(name, "int64", (self.patches,))
        with graph.scope(name):
            column = graph.node("Unsqueeze", segments, graph.constant([1]))
            row = graph.node("Unsqueeze", segments, graph.constant([0]))
            return graph.node("Equal", column, row)

    def _block(self, hidden: str, name: str, cos: str, sin: str, mask: str) -> str:
        """Add one transformer block, [1, P, C] to [1, P, C]."""
        graph, weights, heads = self.graph, self.weights, self.config.num_heads
        x = self.normalize(graph, weights, hidden, f"{name}.norm1", EPS)
        joint = add_linear(graph, weights, x, f"{name}.attn.qkv", bias=True)
        with graph.scope(f"{name}.attn"):
            q, k, v = graph.nodes("Split", [joint], ["", "", ""], axis=-1, num_outputs=3)
            q, k = (add_rotation(graph, each, cos, sin, heads) for each in (q, k))
            mixed = add_attention(graph, q, k, v, mask, heads, heads)
        y = add_linear(graph, weights, mixed, f"{name}.attn.proj", bias=True)
        hidden = graph.node("Add", hidden, y)
        x = self.normalize(graph, weights, hidden, f"{name}.norm2", EPS)
        return graph.node("Add", hidden, self._mlp(x, f"{name}.mlp"))

    def _mlp(self, x: str, name: str) -> str:
        """Add the MLP of a block; its form is that of the activation."""
        graph, weights = self.graph, self.weights

        def linear(x: str, layer: str) -> str:
            return add_linear(graph, weights, x, f"{name}.{layer}", bias=True)

        if self.config.hidden_act == "silu":
            gate, up = linear(x, "gate_proj"), linear(x, "up_proj")
            return linear(graph.node("Mul", add_silu(graph, gate), up), "down_proj")
        if self.config.hidden_act == "quick_gelu":
            inner = linear(x, "fc1")
            steeper = graph.node("Mul", inner, graph.constant(1.702, "float32"))
            gate = graph.node("Sigmoid", steeper)
            return linear(graph.node("Mul", inner, gate), "fc2")
        inner = graph.node("Gelu", linear(x, "linear_fc1"), approximate="tanh")
        return linear(inner, "linear_fc2")

    def _merger(self, hidden: str, name: str, output: str) -> str:
        """Add the merger of Qwen2-VL and Qwen2.5-VL, [1, P, C] to [P / merge unit, H]."""
        normed = self.normalize(self.graph, self.weights, hidden, f"{name}.ln_q", EPS)
        return self._merged_mlp(self._joined(normed), f"{name}.mlp.0", f"{name}.mlp.2", output)

    def _normed_merger(self, hidden: str, name: str, output: str) -> str:
        """Add a merger of Qwen3-VL, [1, P, C] to [P / merge unit, H].

        Those of kept outputs normalize the channels of all patches of a token together.
        """
        norms_joined = output != FEATURES
        if norms_joined:
            hidden = self._joined(hidden)
        hidden = add_layer_norm(self.graph, self.weights, hidden, f"{name}.norm", EPS)
        if not norms_joined:
            hidden = self._joined(hidden)
        return self._merged_mlp(hidden, f"{name}.linear_fc1", f"{name}.linear_fc2", output)

    def _joined(self, hidden: str) -> str:
        """Join the channels of all patches of a token, [1, P, C] to [P / unit, unit * C]."""
        width = self.config.hidden_size * self.config.merge_unit
        return self.graph.node("Reshape", hidden, self.graph.constant([-1, width]))

    def _merged_mlp(self, x: str, first: str, second: str, output: str) -> str:
        inner = add_linear(self.graph, self.weights, x, first, bias=True)
        inner = self.graph.node("Gelu", inner)
        return add_linear(self.graph, self.weights, inner, second, bias=True, output=output)
