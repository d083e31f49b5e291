"""Entries of the family tables: linear layers, and what may be done with them.

An entry belongs to every block of a stage, or to those of one kind, and names modules by their
paths within a block. `LinearSpec` is a linear layer of a model of a certain size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..config import ModelConfig

Part = Literal["tower", "embedding", "decoder", "head", "mtp", "unused"]
"""Stages of the tower are passed by samples with images or videos only, the others by all samples.
There is one stage of the decoder and one of the head, which predicts tokens. The token embedding is
a part without a stage: its rows are looked up before the first decoder layer. So is the module for
multi-token prediction (MTP), which is carried along and which no sample passes; `unused` blocks are
carried along too, and are never quantized, because nothing computes with them."""

PARTS: tuple[str, ...] = get_args(Part)
CARRIED_PARTS: tuple[Part, ...] = ("mtp", "unused")
"""Parts that a checkpoint holds and no sample passes."""


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


def widths(config: ModelConfig) -> Mapping[str, int]:
    """Return the sizes behind the width names of the tables."""
    vision, text = config.vision, config.text
    return {
        "vision": vision.hidden_size,
        "vision_qkv": 3 * vision.hidden_size,
        "vision_head": vision.head_dim,
        "vision_mlp": vision.intermediate_size,
        "merged": vision.hidden_size * vision.merge_unit,
        "hidden": text.hidden_size,
        "twice_hidden": 2 * text.hidden_size,
        "head": text.head_dim,
        "q": text.num_attention_heads * text.head_dim,
        "gated_q": 2 * text.num_attention_heads * text.head_dim,
        "qkv": (text.num_attention_heads + 2 * text.num_key_value_heads) * text.head_dim,
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
