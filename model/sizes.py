"""Sizes of a model's parts, as frozen dataclasses that check themselves.

`config.py` reads them from `config.json`. Modules are built from them alone: what differs between
families is a field here, not the name of a family.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower; `hidden_size` is the width inside its blocks."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int  # width after the merger, equal to the decoder's hidden size
    norm: Literal["layer", "rms"]
    hidden_act: Literal["quick_gelu", "silu", "gelu_pytorch_tanh", "gelu"]
    in_channels: int = 3
    patch_size: int = 14  # pixels
    temporal_patch_size: int = 2  # frames
    spatial_merge_size: int = 2  # patches per side of one token
    window_size: int = 0  # pixels; 0: full attention in every block
    fullatt_block_indexes: tuple[int, ...] = ()
    tokens_per_second: int = 0  # 0: temporal position ids count patches instead of seconds
    num_position_embeddings: int = 0  # rows of the position table, a square; 0: no table
    deepstack_visual_indexes: tuple[int, ...] = ()  # blocks whose outputs decoder layers receive
    separate_frames: bool = False  # text with the time precedes each temporal patch of a video
    image_size: int = 0  # pixels per side of every image; 0: images have any size
    squeezed: bool = False  # images are scaled to that size without regard to their proportions
    norm_eps: float = 1e-6  # added to the variance in LayerNorm or the mean square in RMSNorm
    unused_layers: int = 0  # stored after the `depth` that run

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 4:
            raise ValueError(
                f"config.json: vision width {self.hidden_size} does not split into "
                f"{self.num_heads} heads of a size divisible by 4; correct num_heads"
            )
        merged = self.patch_size * self.spatial_merge_size
        if self.window_size and self.window_size < merged:
            raise ValueError(
                f"config.json: window_size {self.window_size} is smaller than one merged patch "
                f"({merged} pixels); allowed: 0 or at least {merged}"
            )
        if self.image_size % self.pixel_factor:
            raise ValueError(
                f"config.json: image_size {self.image_size} is not a multiple of the "
                f"{self.pixel_factor} pixels per side of a token; take the file from the original "
                "checkpoint"
            )
        if self.position_side**2 != self.num_position_embeddings:
            raise ValueError(
                f"config.json: num_position_embeddings {self.num_position_embeddings} is not a "
                "square; take the file from the original checkpoint"
            )
        indexes = self.deepstack_visual_indexes
        if list(indexes) != sorted(set(indexes)) or any(i >= self.depth for i in indexes):
            raise ValueError(
                f"config.json: deepstack_visual_indexes {list(indexes)}; allowed: ascending "
                f"indexes of blocks from 0 to {self.depth - 1}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def merge_unit(self) -> int:
        """Number of patches that the merger joins into one token."""
        return self.spatial_merge_size**2

    @property
    def patch_dim(self) -> int:
        """Length of a flattened patch: channels x frames x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def pixel_factor(self) -> int:
        """Divisor of the image sides, in pixels."""
        return self.patch_size * self.spatial_merge_size

    @property
    def grid_side(self) -> int:
        """Patches per side of every image; 0: images have any size."""
        return self.image_size // self.patch_size

    @property
    def position_side(self) -> int:
        """Rows and columns of the position table; 0: there is none."""
        return math.isqrt(self.num_position_embeddings)

    @property
    def is_windowed(self) -> bool:
        """Whether some blocks use window attention."""
        return self.window_size > 0

    def has_full_attention(self, index: int) -> bool:
        """Tell whether block `index` attends to the whole frame."""
        return not self.is_windowed or index in self.fullatt_block_indexes


@dataclass(frozen=True)
class YarnScaling:
    """Parameters of YaRN (arXiv 2309.00071), which extends the context of rotary positions."""

    factor: float  # extended context / context of the training
    original_max_position_embeddings: int  # context of the training, in tokens
    attention_factor: float | None = None  # of cosine and sine; None: `rotary_factor`
    beta_fast: float = 32.0  # rotations within the context above which a frequency stays
    beta_slow: float = 1.0  # rotations below which a frequency is divided by `factor`
    truncate: bool = True  # round the bounds between the two to whole frequencies
    mscale: float | None = None  # with mscale_all_dim: weights of ln(factor), see below
    mscale_all_dim: float | None = None

    @property
    def rotary_factor(self) -> float:
        """Factor of cosine and sine: `attention_factor`, or 0.1 ln(factor) + 1.

        With `mscale` and `mscale_all_dim` both given it is the quotient of two such sums, in which
        ln(factor) has these weights, as in DeepSeek-V3's files; one of them alone has no effect.
        """
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return self._scale(self.mscale) / self._scale(self.mscale_all_dim)
        return self._scale(1.0)

    def _scale(self, weight: float) -> float:
        return 0.1 * weight * math.log(max(self.factor, 1.0)) + 1.0


@dataclass(frozen=True)
class LengthScaling:
    """What a decoder does with tokens beyond the length of its training, see `dynamic_ntk.py`."""

    trained_tokens: int  # length of the training
    dynamic_ntk: bool  # a longer prompt raises the base of the rotary frequencies
    logn: bool  # queries at later positions are scaled


@dataclass(frozen=True)
class ExpertSizes:
    """Sizes of a mixture of experts, which takes the place of every MLP of the decoder."""

    count: int  # experts of a layer
    active: int  # experts that a token is routed to
    intermediate_size: int  # of one expert
    input_major: bool  # weights are stored as [experts, in_features, out_features]
    orientation_unsure: bool = False  # a square tensor may be stored in either orientation
    shared_intermediate_size: int = 0  # of the expert that computes every token; 0: there is none

    def __post_init__(self) -> None:
        if self.active > self.count:
            raise ValueError(
                f"config.json: num_experts_per_tok {self.active} exceeds num_experts "
                f"{self.count}; correct one of them"
            )


LayerType = Literal["full_attention", "linear_attention"]


@dataclass(frozen=True)
class LinearAttentionSizes:
    """Sizes of the gated delta rule layers of a decoder, see `linear_attention.py`."""

    key_heads: int  # of queries and keys; each serves a run of value heads
    value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int  # tokens that the causal convolution of queries, keys and values reads

    def __post_init__(self) -> None:
        if self.value_heads % self.key_heads:
            raise ValueError(
                f"config.json: linear_num_value_heads {self.value_heads} is not a multiple of "
                f"linear_num_key_heads {self.key_heads}; correct one of them"
            )

    @property
    def key_width(self) -> int:
        """Width of all keys together, and of all queries."""
        return self.key_heads * self.key_head_dim

    @property
    def value_width(self) -> int:
        """Width of all values together."""
        return self.value_heads * self.value_head_dim

    @property
    def qkv_width(self) -> int:
        """Width of queries, keys and values together."""
        return 2 * self.key_width + self.value_width


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the decoder."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float
    mrope_section: tuple[int, int, int]  # rotary pairs for time, height, width
    tie_word_embeddings: bool
    mrope: bool = True  # False: one counter of tokens, and all rotary pairs are those of the first
    max_position_embeddings: int = 32768
    qkv_bias: bool = True  # of q_proj, k_proj and v_proj; o_proj has none
    qk_norm: bool = False  # RMSNorm over each head of q and k, before the rotation
    yarn: YarnScaling | None = None
    length_scaling: LengthScaling | None = None
    experts: ExpertSizes | None = None  # None: a dense decoder, with `intermediate_size`
    norm_offset: float = 0.0  # added to the weights of norms: 1 if they are stored zero-centred
    rotary_share: float = 1.0  # of the channels of a head that are rotated, the first ones
    query_gate: bool = False  # q_proj gives queries and a gate of the attention's output per head
    linear_attention: LinearAttentionSizes | None = None  # of the layers of that type
    layer_types: tuple[LayerType, ...] = ()  # empty: all have full attention
    mtp_layers: int = 0  # decoder layers of the multi-token-prediction head

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"config.json: {self.num_attention_heads} attention heads are not a multiple of "
                f"{self.num_key_value_heads} key/value heads; correct num_key_value_heads"
            )
        if sum(self.mrope_section) * 2 != self.rotary_dim:
            of_head = f"head_dim {self.head_dim}"
            if self.rotary_share < 1:
                of_head = f"the {self.rotary_dim} rotated channels of {of_head}"
            raise ValueError(
                f"config.json: mrope_section {list(self.mrope_section)} adds up to "
                f"{sum(self.mrope_section)}; it must be half of {of_head}"
            )
        if not self.mrope and any(self.mrope_section[1:]):
            raise ValueError(
                f"config.json: mrope_section is {list(self.mrope_section)}; allowed: none, because "
                "the tokens of this model have one position each"
            )
        if self.layer_types and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"config.json: {len(self.layer_types)} layer_types for {self.num_hidden_layers} "
                "layers; allowed: one for each"
            )

    @property
    def rotary_dim(self) -> int:
        """Number of channels of a head that are rotated."""
        return int(self.head_dim * self.rotary_share)

    @property
    def active_intermediate_size(self) -> int:
        """Inner channels of the feed-forward that are computed for one token."""
        if self.experts is None:
            return self.intermediate_size
        routed = self.experts.active * self.experts.intermediate_size
        return routed + self.experts.shared_intermediate_size

    @property
    def cached_layers(self) -> tuple[int, ...]:
        """Indexes of the layers that cache keys and values, those with full attention."""
        layers = range(self.num_hidden_layers)
        return tuple(each for each in layers if self.layer_type(each) == "full_attention")

    def layer_type(self, index: int) -> LayerType:
        """Return the type of layer `index`."""
        return self.layer_types[index] if self.layer_types else "full_attention"
