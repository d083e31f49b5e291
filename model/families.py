"""One table per family: what calibration and quantization must know and must not guess.

A stage is a run of equal blocks (vision blocks, the merger, decoder layers, the head). Within a
block every linear layer is listed with the tensor that feeds it (its tap): linears of one tap share
one Hessian. Bindings say through which operations a rescaling passes unchanged; they are tied to
the block they stand in, never found by name, because the vision MLP of Qwen2.5-VL carries the
decoder's names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from .config import ModelConfig
from .rope import MropeLayout

# Copied byte for byte into every checkpoint that is written; saving through a library has changed
# such files before (truncation settings, templates).
SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class LinearSpec:
    """One linear layer of a concrete model."""

    name: str  # "model.layers.3.self_attn.q_proj"
    in_features: int
    out_features: int
    bias: bool
    stage: str
    block: int  # index within the stage
    tap: str  # linears of one block with equal taps read the same tensor
    input_split: bool = False  # engines that split layers over devices split its input

    @property
    def weights(self) -> int:
        """Number of weights, biases apart."""
        return self.in_features * self.out_features


@dataclass(frozen=True)
class BlockLinear:
    """A linear layer within a block; widths are keys of `widths`."""

    name: str
    inputs: str
    outputs: str
    bias: bool
    tap: str
    input_split: bool = False


@dataclass(frozen=True)
class NormBinding:
    """A norm whose weight (and bias, if any) scales the input of linears without changing more.

    `tiles`: how many copies of the norm's channels lie side by side in the linears' input.
    """

    norm: str
    linears: tuple[str, ...]
    tiles: int = 1


@dataclass(frozen=True)
class PairBinding:
    """Output rows of `source` scale input columns of `target` through a linear path.

    `part` is the (index, count) of the slice of the source's rows that takes part; with
    `grouped_heads` each key/value head of the source feeds several heads of the target.
    The source's bias is scaled with its rows.
    """

    source: str
    target: str
    part: tuple[int, int] = (0, 1)
    grouped_heads: bool = False


@dataclass(frozen=True)
class PaddedWidth:
    """An inner width that may grow by zero channels without changing the function."""

    width: str  # key of `widths`
    outputs: tuple[str, ...]  # linears that get zero rows
    inputs: tuple[str, ...]  # linears that get zero columns
    config_field: tuple[str, str]  # where config.json says the width; section "" is the decoder's


@dataclass(frozen=True)
class Stage:
    """A run of equal blocks."""

    name: Literal["vision", "merger", "decoder", "head"]
    path: str  # module path with {} for the block index, if there is one
    count: Callable[[ModelConfig], int]
    entry: str | None  # module outside the blocks that runs before the first one
    linears: tuple[BlockLinear, ...]
    norms: tuple[NormBinding, ...] = ()
    pairs: tuple[PairBinding, ...] = ()
    fused: tuple[tuple[str, ...], ...] = ()  # engines fuse these: same scheme for all members
    padded: tuple[PaddedWidth, ...] = ()

    @property
    def bindings(self) -> tuple[NormBinding | PairBinding, ...]:
        """Everything in a block that a factor may pass through."""
        return (*self.norms, *self.pairs)

    def block_path(self, block: int) -> str:
        """Module path of one block, such as `model.layers.3`."""
        return self.path.format(block)

    def blocks(self, config: ModelConfig) -> tuple[str, ...]:
        """Module paths of all blocks in the order of computation."""
        return tuple(self.block_path(block) for block in range(self.count(config)))


@dataclass(frozen=True)
class Family:
    """A kind of model: its stages in the order of computation."""

    name: str
    stages: tuple[Stage, ...]
    mrope_layout: MropeLayout
    side_files: tuple[str, ...] = SIDE_FILES  # patterns of names in the checkpoint's folder

    def stage(self, name: str) -> Stage:
        """The stage called `name`.

        Raises:
            ValueError: There is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        allowed = ", ".join(stage.name for stage in self.stages)
        raise ValueError(f"{self.name} has no stage {name!r}; allowed: {allowed}")

    def linears(self, config: ModelConfig) -> list[LinearSpec]:
        """Every linear layer of the model, in the order of computation."""
        size = widths(config)
        specs = []
        for stage in self.stages:
            for block, path in enumerate(stage.blocks(config)):
                for linear in stage.linears:
                    name = f"{path}.{linear.name}" if linear.name else path
                    inputs, outputs = size[linear.inputs], size[linear.outputs]
                    specs.append(
                        LinearSpec(
                            name,
                            inputs,
                            outputs,
                            linear.bias,
                            stage.name,
                            block,
                            linear.tap,
                            linear.input_split,
                        )
                    )
        return specs


def widths(config: ModelConfig) -> Mapping[str, int]:
    """Values of the width names that the tables use."""
    vision, text = config.vision, config.text
    return {
        "vision": vision.hidden_size,
        "vision_qkv": 3 * vision.hidden_size,
        "vision_mlp": vision.intermediate_size,
        "merged": vision.hidden_size * vision.merge_unit,
        "hidden": text.hidden_size,
        "q": text.num_attention_heads * text.head_dim,
        "kv": text.num_key_value_heads * text.head_dim,
        "mlp": text.intermediate_size,
        "vocab": text.vocab_size,
    }


def family_of(config: ModelConfig) -> Family:
    """The family table of a model."""
    return FAMILIES[config.family]


_VISION_ATTENTION = (
    BlockLinear("attn.qkv", "vision", "vision_qkv", bias=True, tap="qkv"),
    BlockLinear("attn.proj", "vision", "vision", bias=True, tap="o", input_split=True),
)
# v is the last third of the joint projection.
_VISION_VALUE = PairBinding("attn.qkv", "attn.proj", part=(2, 3))

_VISION_QWEN2 = Stage(
    name="vision",
    path="visual.blocks.{}",
    count=lambda config: config.vision.depth,
    entry="visual.patch_embed",
    linears=(
        *_VISION_ATTENTION,
        BlockLinear("mlp.fc1", "vision", "vision_mlp", bias=True, tap="fc1"),
        BlockLinear("mlp.fc2", "vision_mlp", "vision", bias=True, tap="fc2", input_split=True),
    ),
    norms=(NormBinding("norm1", ("attn.qkv",)), NormBinding("norm2", ("mlp.fc1",))),
    pairs=(_VISION_VALUE,),  # not fc1 -> fc2: QuickGELU lies between and is not linear
)

_VISION_QWEN2_5 = Stage(
    name="vision",
    path="visual.blocks.{}",
    count=lambda config: config.vision.depth,
    entry="visual.patch_embed",
    linears=(
        *_VISION_ATTENTION,
        BlockLinear("mlp.gate_proj", "vision", "vision_mlp", bias=True, tap="gate_up"),
        BlockLinear("mlp.up_proj", "vision", "vision_mlp", bias=True, tap="gate_up"),
        BlockLinear(
            "mlp.down_proj", "vision_mlp", "vision", bias=True, tap="down", input_split=True
        ),
    ),
    norms=(
        NormBinding("norm1", ("attn.qkv",)),
        NormBinding("norm2", ("mlp.gate_proj", "mlp.up_proj")),
    ),
    pairs=(_VISION_VALUE, PairBinding("mlp.up_proj", "mlp.down_proj")),
    fused=(("mlp.gate_proj", "mlp.up_proj"),),
    padded=(
        PaddedWidth(
            "vision_mlp",
            ("mlp.gate_proj", "mlp.up_proj"),
            ("mlp.down_proj",),
            ("vision_config", "intermediate_size"),
        ),
    ),
)

_MERGER = Stage(
    name="merger",
    path="visual.merger",
    count=lambda config: 1,
    entry=None,
    linears=(
        BlockLinear("mlp.0", "merged", "merged", bias=True, tap="merger_in"),
        BlockLinear("mlp.2", "merged", "hidden", bias=True, tap="merger_out", input_split=True),
    ),
    norms=(NormBinding("ln_q", ("mlp.0",), tiles=4),),
)

_DECODER = Stage(
    name="decoder",
    path="model.layers.{}",
    count=lambda config: config.text.num_hidden_layers,
    entry="model.embed_tokens",
    linears=(
        BlockLinear("self_attn.q_proj", "hidden", "q", bias=True, tap="qkv"),
        BlockLinear("self_attn.k_proj", "hidden", "kv", bias=True, tap="qkv"),
        BlockLinear("self_attn.v_proj", "hidden", "kv", bias=True, tap="qkv"),
        BlockLinear("self_attn.o_proj", "q", "hidden", bias=False, tap="o", input_split=True),
        BlockLinear("mlp.gate_proj", "hidden", "mlp", bias=False, tap="gate_up"),
        BlockLinear("mlp.up_proj", "hidden", "mlp", bias=False, tap="gate_up"),
        BlockLinear("mlp.down_proj", "mlp", "hidden", bias=False, tap="down", input_split=True),
    ),
    norms=(
        NormBinding(
            "input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        ),
        NormBinding("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ),
    pairs=(
        PairBinding("self_attn.v_proj", "self_attn.o_proj", grouped_heads=True),
        PairBinding("mlp.up_proj", "mlp.down_proj"),
    ),
    fused=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("mlp.gate_proj", "mlp.up_proj"),
    ),
    padded=(
        PaddedWidth(
            "mlp",
            ("mlp.gate_proj", "mlp.up_proj"),
            ("mlp.down_proj",),
            ("", "intermediate_size"),
        ),
    ),
)

_HEAD = Stage(
    name="head",
    path="lm_head",
    count=lambda config: 0 if config.text.tie_word_embeddings else 1,
    entry="model.norm",
    linears=(BlockLinear("", "hidden", "vocab", bias=False, tap="head"),),
)

FAMILIES: dict[str, Family] = {
    "qwen2_vl": Family(
        name="qwen2_vl",
        stages=(_VISION_QWEN2, _MERGER, _DECODER, _HEAD),
        mrope_layout="sectioned",
    ),
    "qwen2_5_vl": Family(
        name="qwen2_5_vl",
        stages=(_VISION_QWEN2_5, _MERGER, _DECODER, _HEAD),
        mrope_layout="sectioned",
    ),
}
