"""The structure of a model as data for calibration and quantization.

A stage is a run of equal blocks (vision blocks, the merger, decoder layers, the head). Within a
block every linear layer is listed with its input tensor (its tap): linears with the same tap share
one Hessian. Bindings list the pairs of operations between which channels can be rescaled without
changing the function. They belong to a stage and are never derived from module names, because the
vision MLP of Qwen2.5-VL has the decoder's names.

Every field is read by code, and a value without an implementation is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import ModelConfig
from ..rope import MropeLayout

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
    """A linear layer of a model with its sizes."""

    name: str  # module path: "model.layers.3.self_attn.q_proj"
    in_features: int
    out_features: int
    bias: bool
    stage: str
    block: int  # index within the stage
    tap: str  # linears of a block with the same tap share their input tensor
    input_split: bool = False  # row-parallel: tensor parallelism splits its input features
    slice: WeightSlice | None = None  # of an expert; its weight is `<name>.weight` otherwise
    token_share: float = 1.0  # expected share of the tokens that reach it, below 1 for an expert

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
    input_major: bool = False  # see `WeightSlice`


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

    def names(self, config: ModelConfig) -> tuple[str, ...]:
        """Return its module paths within a block: one, or one for each expert."""
        if self.experts is None:
            return (self.name,)
        return tuple(self.name.format(expert) for expert in range(self.experts.count(config)))


@dataclass(frozen=True)
class NormBinding:
    """A norm and all linear layers that use its output, so that scales can move between them."""

    norm: str  # its weight is divided by the scales, its bias too if there is one
    linears: tuple[str, ...]  # their input columns are multiplied
    tiles: int = 1  # number of copies of the norm's channels in the linears' input


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
class Stage:
    """A run of equal blocks."""

    name: str
    path: str  # module path, with {} for the block index if there are several blocks
    count: Callable[[ModelConfig], int]
    entry: str | None  # module that runs before the first block and belongs to none
    linears: tuple[BlockLinear, ...]
    norms: tuple[NormBinding, ...] = ()
    pairs: tuple[PairBinding, ...] = ()
    fused: tuple[tuple[str, ...], ...] = ()  # engines fuse each group: one scheme for its members
    padded: tuple[PaddedWidth, ...] = ()

    @property
    def bindings(self) -> tuple[NormBinding | PairBinding, ...]:
        """All bindings of a block."""
        return (*self.norms, *self.pairs)

    def block_path(self, block: int) -> str:
        """Return the module path of one block, such as `model.layers.3`."""
        return self.path.format(block)

    def blocks(self, config: ModelConfig) -> tuple[str, ...]:
        """Return the module paths of all blocks in the order of computation."""
        return tuple(self.block_path(block) for block in range(self.count(config)))


@dataclass(frozen=True)
class Family:
    """A model type: its stages in the order of computation."""

    name: str
    stages: tuple[Stage, ...]
    mrope_layout: MropeLayout
    side_files: tuple[str, ...] = SIDE_FILES  # name patterns in the checkpoint's folder

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
            for linear in stage.linears
            for spec in _specs(config, stage, block, linear)
        ]


def _specs(
    config: ModelConfig, stage: Stage, block: int, linear: BlockLinear
) -> Iterator[LinearSpec]:
    """Yield a linear layer of one block, or the layers of its experts."""
    path, size, experts = stage.block_path(block), widths(config), linear.experts
    share = experts.active(config) / experts.count(config) if experts else 1.0
    for index, name in enumerate(linear.names(config)):
        weight = None
        if experts:
            tensor = f"{path}.{experts.name}"
            weight = WeightSlice(tensor, index, experts.part, experts.input_major)
        yield LinearSpec(
            f"{path}.{name}" if name else path,
            size[linear.inputs],
            size[linear.outputs],
            linear.bias,
            stage.name,
            block,
            linear.tap,
            linear.input_split,
            weight,
            share,
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
        "q": text.num_attention_heads * text.head_dim,
        "kv": text.num_key_value_heads * text.head_dim,
        "mlp": text.intermediate_size,
        "vocab": text.vocab_size,
    }
