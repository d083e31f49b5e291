"""The structure of a model as data for calibration and quantization.

A stage is a run of blocks (vision blocks, a merger, decoder layers, the head), equal or of a few
kinds that alternate: layers with linear and with full attention. The state of a
sample, a dict of tensors, passes through the blocks of all stages; a stage has functions for its
first state, for one block, and for what remains after the last block (`steps.py` has those that
most families need). Calibration, the smoke test and the plan are driven by these.

Within a block every linear layer is listed with its input tensor (its tap): linears with the same
tap share one Hessian. Bindings list the pairs of operations between which channels can be rescaled
without changing the function. They belong to a stage and are never derived from module names,
because the vision MLP of Qwen2.5-VL has the decoder's names.

Every field is read by code, and a value without an implementation is an error: what can be checked
without a model is checked here, and `family_check` compares a table with the modules of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ..config import ModelConfig
from ..features import HIDDEN
from ..rope import MropeLayout

if TYPE_CHECKING:  # modules of models import this one
    from ..config import TextConfig, VisionConfig
    from ..processing.inputs import Prompt
    from ..qwen_vl import QwenVL
    from ..text import State, TextModel
    from ..tower import Tower

Part = Literal["tower", "embedding", "decoder", "head", "mtp"]
"""Stages of the tower are passed by samples with images or videos only, the others by all samples.
There is one stage of the decoder and one of the head, which predicts tokens. The token embedding is
a part without a stage: its rows are looked up before the first decoder layer. So is the module for
multi-token prediction (MTP), which is carried along and which no sample passes."""

Enter = Callable[["QwenVL", "Prompt", "State | None"], "State"]
"""Called with the model, a sample and its state after the stage before (None: it has none); returns
the sample's state before the first block."""
Step = Callable[["QwenVL", int, "State"], "State"]
"""Called with the model, the index of a block and its input; returns the state after the block."""
Leave = Callable[["QwenVL", "State"], "State"]
"""Called with the model and a sample's state after the last block; returns what remains of it."""
Complete = Callable[["QwenVL", int, "State", Tensor], "State"]
"""Called with the model, the index of a block, its input, and the output that was computed from a
checkpoint; returns the state after the block."""

Cached = Callable[["QwenVL", int, "State"], tuple[Tensor, Tensor]]
"""Called with the model, the index of a block and its input; returns the keys (after the rotary
embedding) and values that the block caches, `[1, kv_heads, tokens, head_dim]`."""

Kind = Callable[[ModelConfig, int], str]
"""Called with the index of a block; returns the name of its kind, one of a few in a stage."""

PARTS: tuple[str, ...] = get_args(Part)
EMBEDDING = "model.embed_tokens"
"""Module path of the token embedding in all families."""

# Copied byte for byte into every saved checkpoint: saving through a library can change such files
# (truncation settings, templates).
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
class WeightSlice:
    """Where the weight of an expert is in a tensor of all experts."""

    tensor: str  # name in the checkpoint: "model.layers.3.mlp.experts.gate_up_proj"
    index: int  # number of the expert, along the first dimension
    part: tuple[int, int] = (0, 1)  # (index, count) of the slice of the output features
    input_major: bool = False  # stored as [experts, in_features, out_features]

    def view(self, tensor: Tensor) -> Tensor:
        """Return the weight `[out_features, in_features]`, a view of the tensor of all experts."""
        matrix = tensor[self.index]
        return torch.chunk(matrix.t() if self.input_major else matrix, self.part[1])[self.part[0]]


@dataclass(frozen=True)
class LinearSpec:
    """A linear layer of a model with its sizes, or the token embedding.

    The embedding has a row of width `in_features` for each of `out_features` tokens.
    """

    name: str  # module path: "model.layers.3.self_attn.q_proj"
    in_features: int
    out_features: int
    bias: bool
    stage: str
    part: Part
    block: int  # index within the stage
    tap: str  # linears of a block with the same tap share their input tensor
    input_split: bool = False  # row-parallel: tensor parallelism splits its input features
    slice: WeightSlice | None = None  # of an expert; its weight is `<name>.weight` otherwise
    token_share: float = 1.0  # expected share of the tokens that reach it, below 1 for an expert
    row_parts: tuple[int, ...] = ()  # runs of output features with different uses, repeated

    @property
    def expert(self) -> int | None:
        """Number of the expert that it belongs to; each has a tap with the tokens routed to it."""
        return self.slice.index if self.slice else None

    @property
    def weights(self) -> int:
        """Number of weights without the bias."""
        return self.in_features * self.out_features


@dataclass(frozen=True)
class ExpertTensor:
    """The tensor with the weights of a linear layer of all experts of a block."""

    name: str  # within the block
    count: Callable[[ModelConfig], int]  # number of experts
    active: Callable[[ModelConfig], int]  # number of experts that a token is routed to
    part: tuple[int, int] = (0, 1)  # see `WeightSlice`
    input_major: Callable[[ModelConfig], bool] = lambda config: False  # see `WeightSlice`


@dataclass(frozen=True)
class BlockLinear:
    """A linear layer of every block of a stage; fields as in `LinearSpec`."""

    name: str  # module path within the block, with {} for the number of the expert
    inputs: str  # key of `widths`
    outputs: str  # key of `widths`
    bias: bool
    tap: str
    input_split: bool = False
    experts: ExpertTensor | None = None  # there is one layer for each expert
    kind: str | None = None  # it is only in blocks of this kind, see `Stage.kind`; None: in all
    row_parts: tuple[str, ...] = ()  # keys of `widths`; empty: all output features have one use

    def names(self, config: ModelConfig) -> tuple[str, ...]:
        """Return its module paths within a block: one, or one for each expert."""
        if self.experts is None:
            return (self.name,)
        return tuple(self.name.format(expert) for expert in range(self.experts.count(config)))


@dataclass(frozen=True)
class KeptLinear:
    """A linear layer of every block that is never quantized, such as a router."""

    name: str  # module path within the block
    inputs: str  # key of `widths`
    outputs: str  # key of `widths`
    tap: str
    reason: str  # why it stays in float, after "because"
    bias: bool = False
    kind: str | None = None  # as in `BlockLinear`


@dataclass(frozen=True)
class NormBinding:
    """A norm and all linear layers that use its output, so that scales can move between them."""

    norm: str  # its weight is divided by the scales, its bias too if there is one
    linears: tuple[str, ...]  # their input columns are multiplied; `kept` layers are among them
    tiles: int = 1  # number of copies of the norm's channels in the linears' input
    tiles_of: str | None = None  # key of `widths` with this number, which `Stage.bindings` fills in
    offset: float = 0.0  # channels are multiplied by it plus the weight: 1 for zero-centred weights


@dataclass(frozen=True)
class PairBinding:
    """Two linear layers with a path between them that is linear in each channel.

    Output rows of `source` (with its bias) can be divided, and input columns of `target`
    multiplied, by the same scales.
    """

    source: str
    target: str
    part: tuple[int, int] = (0, 1)  # (index, count) of the slice of the source's rows
    grouped_heads: bool = False  # GQA: each key/value head of the source feeds several heads


@dataclass(frozen=True)
class PaddedWidth:
    """An inner width that can be padded with zero channels without changing the function."""

    width: str  # key of `widths`
    outputs: tuple[str, ...]  # linears to which zero rows are added
    inputs: tuple[str, ...]  # linears to which zero columns are added
    config_field: tuple[str, str]  # section and key of config.json; section "" is the decoder's


@dataclass(frozen=True)
class Checkpoints:
    """Taps inside a block at which calibration can interrupt and resume it.

    The block's module has `forward_to` and `forward_from`, and for taps of experts `expert_inputs`,
    see `text.DecoderLayer`.
    """

    taps: tuple[str, ...]  # in the order of computation
    complete: Complete


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """A run of blocks with their linear layers; fused groups are those of blocks that have them.

    Raises:
        ValueError: fields contradict each other.
    """

    name: str
    part: Part
    path: str  # module path, with {} for the block index if there are several blocks
    count: Callable[[ModelConfig], int]
    linears: tuple[BlockLinear, ...]  # other fields name those of experts with {}, as they do
    kept: tuple[KeptLinear, ...] = ()
    kind: Kind | None = None  # None: all blocks are equal
    fused: tuple[tuple[str, ...], ...] = ()  # engines fuse each group: one scheme for its members

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise ValueError(
                f"stage {self.name}: part {self.part!r} is unknown; allowed: {', '.join(PARTS)}"
            )
        names = [linear.name for linear in self.linears]
        self._refuse("linear", (name for group in self.fused for name in group), names)
        self._refuse("linear of two entries", [n for n in names if names.count(n) > 1], ())
        by_name = {linear.name: linear for linear in self.linears}
        for group in self.fused:
            taps = {by_name[name].tap for name in group}
            self._refuse("tap of fused linears", sorted(taps)[1:], ())

    def _refuse(self, what: str, used: Iterable[str], allowed: Iterable[str]) -> None:
        """Refuse names that are not among the allowed ones."""
        if unknown := sorted(set(used) - set(allowed)):
            raise ValueError(
                f"stage {self.name}: {what} {', '.join(unknown)} does not fit its other fields; "
                f"allowed: {', '.join(sorted(allowed)) or 'none'}"
            )

    def block_linears(self, config: ModelConfig, block: int) -> tuple[BlockLinear, ...]:
        """Return the linear layers of one block."""
        kind = self._kind(config, block)
        return tuple(each for each in self.linears if each.kind in (None, kind))

    def block_kept(self, config: ModelConfig, block: int) -> tuple[KeptLinear, ...]:
        """Return the linear layers of one block that are never quantized."""
        kind = self._kind(config, block)
        return tuple(each for each in self.kept if each.kind in (None, kind))

    def fused_groups(self, config: ModelConfig, block: int) -> tuple[tuple[str, ...], ...]:
        """Return the fused groups of a block, those of experts for each of them."""
        names = self._names(config, block)
        return tuple(
            members
            for group in self.fused
            if names.keys() >= set(group)
            for members in zip(*(names[name] for name in group), strict=True)
        )

    def members(self, config: ModelConfig, block: int) -> set[str]:
        """Return the module paths within a block of all its linear layers."""
        return {path for paths in self._names(config, block).values() for path in paths}

    def _names(self, config: ModelConfig, block: int) -> dict[str, tuple[str, ...]]:
        """Return the module paths within a block by name in the table."""
        return {kept.name: (kept.name,) for kept in self.block_kept(config, block)} | {
            linear.name: linear.names(config) for linear in self.block_linears(config, block)
        }

    def _kind(self, config: ModelConfig, block: int) -> str | None:
        return None if self.kind is None else self.kind(config, block)

    def block_path(self, block: int) -> str:
        """Return the module path of one block, such as `model.layers.3`."""
        return self.path.format(block)

    def blocks(self, config: ModelConfig) -> tuple[str, ...]:
        """Return the module paths of all blocks in the order of computation."""
        return tuple(self.block_path(block) for block in range(self.count(config)))


@dataclass(frozen=True, kw_only=True)
class Stage(Blocks):
    """A run of blocks that samples pass; bindings are those of the blocks that have their linears.

    Raises:
        ValueError: fields contradict each other.
    """

    step: Step
    entry: tuple[str, ...] = ()  # modules that belong to no block; `enter` runs them
    enter: Enter | None = None  # None: the state after the stage before
    leave: Leave | None = None  # None: all of the state
    output: str = HIDDEN  # key of a block's output in the state, with {} for the block index
    per_patch: bool = False  # blocks compute patches instead of merged tokens
    checkpoints: Checkpoints | None = None  # None: a block runs as a whole
    cached: Cached | None = None  # None: blocks cache no keys and values
    cached_kind: str | None = None  # kind of the blocks that cache keys and values; None: all
    norms: tuple[NormBinding, ...] = ()
    pairs: tuple[PairBinding, ...] = ()
    padded: tuple[PaddedWidth, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [linear.name for linear in self.linears]
        read = [name for norm in self.norms for name in norm.linears]
        used = [
            *(name for pair in self.pairs for name in (pair.source, pair.target)),
            *(name for padded in self.padded for name in (*padded.outputs, *padded.inputs)),
        ]
        self._refuse("linear", used, names)
        self._refuse("linear", read, [*names, *(kept.name for kept in self.kept)])
        if self.checkpoints is not None:
            self._refuse("tap", self.checkpoints.taps, {linear.tap for linear in self.linears})
        by_name = {linear.name: linear for linear in self.linears}
        for padded in self.padded:
            sizes = {by_name[name].outputs for name in padded.outputs}
            sizes |= {by_name[name].inputs for name in padded.inputs}
            self._refuse("padded width", sorted(sizes), {padded.width})

    def bindings(self, config: ModelConfig, block: int) -> tuple[NormBinding | PairBinding, ...]:
        """Return all bindings of a block: a norm's for all experts, a pair's for each of them."""
        names = self._names(config, block)
        norms = (
            replace(
                norm,
                linears=tuple(name for of in norm.linears for name in names[of]),
                tiles=norm.tiles if norm.tiles_of is None else widths(config)[norm.tiles_of],
            )
            for norm in self.norms
            if names.keys() >= set(norm.linears)
        )
        pairs = (
            replace(pair, source=source, target=target)
            for pair in self.pairs
            if names.keys() >= {pair.source, pair.target}
            for source, target in zip(names[pair.source], names[pair.target], strict=True)
        )
        return (*norms, *pairs)

    def caches(self, config: ModelConfig, block: int) -> bool:
        """Return whether a block caches keys and values."""
        kind = self.cached_kind
        return self.cached is not None and kind in (None, self._kind(config, block))

    def output_key(self, block: int) -> str:
        """Return the key of a block's output in the state after it."""
        return self.output.format(block)


@dataclass(frozen=True)
class Family:
    """A model type: its stages in the order of computation, those of the tower first.

    Raises:
        ValueError: the stages are not in this order, or two have one name.
    """

    name: str
    stages: tuple[Stage, ...]
    build_tower: Callable[[VisionConfig], Tower]
    build_decoder: Callable[[TextConfig, MropeLayout], TextModel]
    mrope_layout: MropeLayout
    features: Callable[[ModelConfig], tuple[str, ...]] = lambda config: (HIDDEN,)  # keys
    side_files: tuple[str, ...] = SIDE_FILES  # name patterns in the checkpoint's folder
    carried: tuple[Blocks, ...] = ()  # checkpoints hold their tensors, models have no such modules

    def __post_init__(self) -> None:
        names, parts = [s.name for s in self.stages], [s.part for s in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name}: two stages have one name: {', '.join(names)}")
        if parts != [*["tower"] * (len(parts) - 2), "decoder", "head"] or len(parts) < 3:
            raise ValueError(
                f"{self.name}: the parts of its stages are {', '.join(parts)}; allowed: one or "
                "more of the tower, then one of the decoder and one of the head"
            )
        for stage in (self.stages[0], self.decoder):
            if stage.enter is None:
                raise ValueError(f"{self.name}: stage {stage.name} needs `enter`")

    @property
    def tower(self) -> tuple[Stage, ...]:
        """The stages of the tower."""
        return self.stages[:-2]

    @property
    def decoder(self) -> Stage:
        """The stage of the decoder layers."""
        return self.stages[-2]

    @property
    def head(self) -> Stage:
        """The stage of the output head; it has no block if the head is tied to the embedding."""
        return self.stages[-1]

    def stage(self, name: str) -> Stage:
        """Return the stage called `name`.

        Raises:
            ValueError: there is no such stage.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        allowed = ", ".join(stage.name for stage in self.stages)
        raise ValueError(f"{self.name} has no stage {name!r}; allowed: {allowed}")

    def linears(self, config: ModelConfig) -> list[LinearSpec]:
        """List every linear layer of a model in the order of computation."""
        return [
            spec
            for stage in self.stages
            for block in range(stage.count(config))
            for linear in stage.block_linears(config, block)
            for spec in _specs(config, stage, block, linear)
        ]

    @property
    def carried_parts(self) -> dict[str, Part]:
        """Parts of tensors that the model does not compute with, by the prefix of their names."""
        return {f"{of.path.partition('.')[0]}.": of.part for of in self.carried}

    def carried_linears(self, config: ModelConfig) -> list[LinearSpec]:
        """List every linear layer of the blocks that are carried along."""
        return [
            spec
            for blocks in self.carried
            for block in range(blocks.count(config))
            for linear in blocks.block_linears(config, block)
            for spec in _specs(config, blocks, block, linear)
        ]

    def embedding(self, config: ModelConfig) -> LinearSpec:
        """Return the token embedding as a target."""
        size = widths(config)
        return LinearSpec(
            EMBEDDING, size["hidden"], size["vocab"], False, "embedding", "embedding", 0, "tokens"
        )

    def targets(self, config: ModelConfig) -> list[LinearSpec]:
        """List everything that can be quantized: the token embedding and every linear layer."""
        return [self.embedding(config), *self.linears(config), *self.carried_linears(config)]

    def kept(self, config: ModelConfig) -> list[tuple[LinearSpec, str]]:
        """List the linear layers that are never quantized, each with the reason."""
        return _kept(config, self.stages)

    def carried_kept(self, config: ModelConfig) -> list[tuple[LinearSpec, str]]:
        """List those of the blocks that are carried along."""
        return _kept(config, self.carried)


def _kept(config: ModelConfig, runs: Iterable[Blocks]) -> list[tuple[LinearSpec, str]]:
    size = widths(config)
    return [
        (
            LinearSpec(
                f"{stage.block_path(block)}.{kept.name}",
                size[kept.inputs],
                size[kept.outputs],
                kept.bias,
                stage.name,
                stage.part,
                block,
                kept.tap,
            ),
            kept.reason,
        )
        for stage in runs
        for block in range(stage.count(config))
        for kept in stage.block_kept(config, block)
    ]


def _specs(
    config: ModelConfig, stage: Blocks, block: int, linear: BlockLinear
) -> Iterator[LinearSpec]:
    """Yield a linear layer of one block, or the layers of its experts."""
    path, size, experts = stage.block_path(block), widths(config), linear.experts
    share = experts.active(config) / experts.count(config) if experts else 1.0
    for index, name in enumerate(linear.names(config)):
        weight = None
        if experts:
            tensor = f"{path}.{experts.name}"
            weight = WeightSlice(tensor, index, experts.part, experts.input_major(config))
        yield LinearSpec(
            f"{path}.{name}" if name else path,
            size[linear.inputs],
            size[linear.outputs],
            linear.bias,
            stage.name,
            stage.part,
            block,
            linear.tap,
            linear.input_split,
            weight,
            share,
            tuple(size[part] for part in linear.row_parts),
        )


def widths(config: ModelConfig) -> Mapping[str, int]:
    """Return the sizes behind the width names of the tables."""
    vision, text = config.vision, config.text
    return {
        "vision": vision.hidden_size,
        "vision_qkv": 3 * vision.hidden_size,
        "vision_mlp": vision.intermediate_size,
        "merged": vision.hidden_size * vision.merge_unit,
        "hidden": text.hidden_size,
        "twice_hidden": 2 * text.hidden_size,
        "head": text.head_dim,
        "q": text.num_attention_heads * text.head_dim,
        "gated_q": 2 * text.num_attention_heads * text.head_dim,
        "kv": text.num_key_value_heads * text.head_dim,
        "mlp": text.intermediate_size,
        "expert": text.experts.intermediate_size if text.experts else 0,
        "experts": text.experts.count if text.experts else 0,
        "shared": text.experts.shared_intermediate_size if text.experts else 0,
        "one": 1,
        "linear_k": text.linear_attention.key_width if text.linear_attention else 0,
        "linear_qkv": text.linear_attention.qkv_width if text.linear_attention else 0,
        "linear_v": text.linear_attention.value_width if text.linear_attention else 0,
        "linear_heads": text.linear_attention.value_heads if text.linear_attention else 0,
        "vocab": text.vocab_size,
    }
