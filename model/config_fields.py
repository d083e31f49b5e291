"""Sections of `config.json` as files spell them, each number within bounds that a model can have.

Unknown keys are ignored: every library adds some of its own. Missing keys take the defaults of
transformers, which leaves out the keys that equal them. `config.py` turns the sections into the
sizes that the model is built of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..common.validation import Allowed, Integer, Real, Truthy, empty_to_none
from .sizes import LayerType, YarnScaling

WIDTH = 2**20
"""Upper bound of features, inner channels and pixels."""
DEPTH = 2**12
"""Upper bound of blocks and heads."""
VOCABULARY = 2**24
POSITIONS = 2**40

Width = Annotated[int, Integer(1, WIDTH, integral=True)]
Depth = Annotated[int, Integer(1, DEPTH, integral=True)]
Index = Annotated[int, Integer(0, DEPTH, integral=True)]
Token = Annotated[int, Integer(0, VOCABULARY - 1, integral=True)]
Pairs = Annotated[int, Integer(0, WIDTH, integral=True)]
Sections = Annotated[
    tuple[Pairs, Pairs, Pairs],
    Allowed("3 whole numbers, the rotary pairs for time, height and width"),
]
Vocabulary = Annotated[int, Integer(1, VOCABULARY, integral=True)]
Epsilon = Annotated[float, Real(above=0, most=1.0)]
Positions = Annotated[int, Integer(1, POSITIONS, integral=True)]
Scale = Annotated[float, Real(above=0, most=1e6)]
Theta = Annotated[float, Real(above=0, most=1e12)]
Share = Annotated[float, Real(above=0, most=1.0)]


class Section(BaseModel):
    """One object of a `config.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class VisionSection(Section):
    """Keys of `vision_config` that all families share."""

    depth: Depth = 32
    num_heads: Depth = 16
    in_channels: Annotated[int, Integer(1, 16, integral=True)] = Field(
        default=3, validation_alias=AliasChoices("in_channels", "in_chans")
    )
    patch_size: Annotated[int, Integer(1, 256, integral=True)] = 14
    temporal_patch_size: Annotated[int, Integer(1, 64, integral=True)] = 2
    spatial_merge_size: Annotated[int, Integer(1, 64, integral=True)] = 2


class Qwen2VisionSection(VisionSection):
    """`vision_config` of Qwen2-VL, where `hidden_size` is the width after the merger."""

    hidden_size: Width = Field(default=1280, validation_alias="embed_dim")
    out_hidden_size: Width = Field(default=3584, validation_alias="hidden_size")
    mlp_ratio: Annotated[float, Real(above=0, most=64)] = 4
    hidden_act: Literal["quick_gelu"] = "quick_gelu"


class Qwen25VisionSection(VisionSection):
    """`vision_config` of Qwen2.5-VL."""

    hidden_size: Width = 3584
    out_hidden_size: Width = 3584
    intermediate_size: Width = 3420
    hidden_act: Literal["silu"] = "silu"
    window_size: Annotated[int, Integer(0, WIDTH, integral=True)] = 112
    fullatt_block_indexes: tuple[Index, ...] = (7, 15, 23, 31)
    tokens_per_second: Annotated[int, Integer(0, 1000, integral=True)] = 4


class Qwen3VisionSection(VisionSection):
    """`vision_config` of Qwen3-VL."""

    depth: Depth = 27
    hidden_size: Width = 1152
    out_hidden_size: Width = 3584
    intermediate_size: Width = 4304
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    patch_size: Annotated[int, Integer(1, 256, integral=True)] = 16
    num_position_embeddings: Annotated[int, Integer(1, WIDTH, integral=True)] = 2304
    deepstack_visual_indexes: tuple[Index, ...] = (8, 16, 24)


class Qwen35VisionSection(Qwen3VisionSection):
    """`vision_config` of Qwen3.5, whose decoder gets no outputs of inner blocks."""

    deepstack_visual_indexes: Annotated[
        tuple[Index, ...], Allowed("[] (Qwen3.5 has no DeepStack)")
    ] = Field(default=(), max_length=0)


class RopeSection(Section):
    """Keys of `rope_scaling`, or `rope_parameters` of newer files, that all families share."""

    mrope_section: Sections
    rope_theta: Theta


class Qwen2RopeSection(RopeSection):
    """The rotary section of Qwen2-VL and Qwen2.5-VL."""

    rope_type: Annotated[
        Literal["default", "mrope"],
        Allowed("default, mrope (long-context scaling is not implemented)"),
    ] = Field(default="default", validation_alias=AliasChoices("rope_type", "type"))
    mrope_section: Sections = (16, 24, 24)
    mrope_interleaved: Literal[False] = False
    rope_theta: Theta = 1_000_000.0


class Qwen3RopeSection(RopeSection):
    """The rotary section of Qwen3-VL; the keys from `factor` on are YaRN's."""

    rope_type: Annotated[
        Literal["default", "mrope", "yarn"],
        Allowed("default, mrope, yarn (no other long-context scaling is implemented)"),
    ] = Field(default="default", validation_alias=AliasChoices("rope_type", "type"))
    mrope_section: Sections = (24, 20, 20)
    mrope_interleaved: Literal[True] = True
    rope_theta: Theta = 500_000.0
    factor: Scale | None = None
    original_max_position_embeddings: Positions | None = None
    attention_factor: Scale | None = None
    beta_fast: Scale | None = None
    beta_slow: Scale | None = None
    truncate: bool = True
    mscale: Scale | None = None
    mscale_all_dim: Scale | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        pairs = sum(self.mrope_section)
        # Pairs 1, 4, 7, ... belong to height and pairs 2, 5, 8, ... to width.
        last = [3 * (count - 1) + axis for axis, count in enumerate(self.mrope_section)]
        if max(last[1:]) >= pairs:
            raise ValueError(
                f"mrope_section {list(self.mrope_section)}: height and width do not fit into every "
                f"third of {pairs} pairs; take the file from the original checkpoint"
            )
        if self.rope_type == "yarn" and None in (
            self.factor,
            self.original_max_position_embeddings,
        ):
            raise ValueError(
                "rope_type is 'yarn'; it needs factor and original_max_position_embeddings; "
                "add both"
            )
        return self

    @property
    def yarn(self) -> YarnScaling | None:
        """Parameters of YaRN; None: the rotary positions are not scaled."""
        if self.rope_type != "yarn" or not self.factor or not self.original_max_position_embeddings:
            return None
        return YarnScaling(
            factor=self.factor,
            original_max_position_embeddings=self.original_max_position_embeddings,
            attention_factor=self.attention_factor,
            beta_fast=self.beta_fast or YarnScaling.beta_fast,
            beta_slow=self.beta_slow or YarnScaling.beta_slow,
            truncate=self.truncate,
            mscale=self.mscale,
            mscale_all_dim=self.mscale_all_dim,
        )


class TextSection(Section):
    """Keys of the decoder that all families share."""

    vocab_size: Vocabulary
    hidden_size: Width
    intermediate_size: Width
    num_hidden_layers: Depth
    num_attention_heads: Depth
    num_key_value_heads: Depth | None
    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Epsilon
    rope_theta: Theta
    max_position_embeddings: Positions

    @model_validator(mode="before")
    @classmethod
    def _drop_unused(cls, raw: Any) -> Any:
        """Leave out keys without an effect; published files have values there that do not fit."""
        if not isinstance(raw, Mapping):
            return raw
        unused = set()
        rope = raw.get("rope_parameters") or raw.get("rope_scaling")
        if raw.get("rope_parameters"):
            unused.add("rope_scaling")
        if isinstance(rope, Mapping) and "rope_theta" in rope:
            unused.add("rope_theta")
        if not raw.get("use_sliding_window"):
            unused.add("max_window_layers")
        return {key: value for key, value in raw.items() if key not in unused}

    def common_sizes(self, rope: RopeSection) -> dict[str, Any]:
        """Return the arguments of `TextConfig` that all families read in the same way.

        Args:
            rope: the rotary section of either generation.
        """
        # Newer files have rope_theta in the rotary section.
        theta = rope.rope_theta if "rope_theta" in rope.model_fields_set else self.rope_theta
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads or self.num_attention_heads,
            "rms_norm_eps": float(self.rms_norm_eps),
            "rope_theta": float(theta),
            "mrope_section": rope.mrope_section,
            "max_position_embeddings": self.max_position_embeddings,
        }


class Qwen2TextSection(TextSection):
    """Keys of Qwen2-VL's and Qwen2.5-VL's decoder: in `text_config`, or at the top level."""

    vocab_size: Vocabulary = 152064
    hidden_size: Width = 8192
    intermediate_size: Width = 29568
    num_hidden_layers: Depth = 80
    num_attention_heads: Depth = 64
    num_key_value_heads: Depth | None = 8
    head_dim: Annotated[Width | None, BeforeValidator(empty_to_none)] = None
    rms_norm_eps: Epsilon = 1e-5
    rope_theta: Theta = 1_000_000.0
    rope_parameters: Annotated[Qwen2RopeSection | None, BeforeValidator(empty_to_none)] = None
    rope_scaling: Annotated[Qwen2RopeSection | None, BeforeValidator(empty_to_none)] = None
    max_position_embeddings: Positions = 32768
    use_sliding_window: Truthy = False
    max_window_layers: Depth = 80

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.use_sliding_window and self.num_hidden_layers > self.max_window_layers:
            raise ValueError(
                "use_sliding_window is true; allowed: false (sliding-window attention is not "
                "implemented)"
            )
        return self

    @property
    def rope(self) -> Qwen2RopeSection:
        """The rotary section of either generation."""
        return self.rope_parameters or self.rope_scaling or Qwen2RopeSection()


class Qwen3TextSection(TextSection):
    """`text_config` of Qwen3-VL."""

    vocab_size: Vocabulary = 151936
    hidden_size: Width = 4096
    intermediate_size: Width = 22016
    num_hidden_layers: Depth = 32
    num_attention_heads: Depth = 32
    num_key_value_heads: Depth | None = 32
    head_dim: Width | None = 128
    rms_norm_eps: Epsilon = 1e-6
    rope_theta: Theta = 500_000.0
    rope_parameters: Annotated[Qwen3RopeSection | None, BeforeValidator(empty_to_none)] = None
    rope_scaling: Annotated[Qwen3RopeSection | None, BeforeValidator(empty_to_none)] = None
    max_position_embeddings: Positions = 128_000
    attention_bias: Annotated[Literal[False], Allowed("false (biases are not implemented)")] = False

    @property
    def rope(self) -> Qwen3RopeSection:
        """The rotary section of either generation."""
        return self.rope_parameters or self.rope_scaling or Qwen3RopeSection()


DenseLayers = Annotated[
    None,
    BeforeValidator(empty_to_none),
    Allowed("[] (layers without experts are not implemented)"),
]


class Qwen3MoeTextSection(Qwen3TextSection):
    """`text_config` of Qwen3-VL with a mixture of experts in every layer."""

    hidden_size: Width = 2048
    intermediate_size: Width = 5632  # of dense layers, which no model has
    num_hidden_layers: Depth = 24
    num_attention_heads: Depth = 16
    num_key_value_heads: Depth | None = 16
    head_dim: Annotated[Width | None, BeforeValidator(empty_to_none)] = None
    num_experts: Depth = Field(
        default=60, validation_alias=AliasChoices("num_experts", "num_local_experts")
    )
    num_experts_per_tok: Depth = 4
    moe_intermediate_size: Width = 1408
    norm_topk_prob: Annotated[
        Literal[True], Allowed("true (shares that do not add up to 1 are not implemented)")
    ] = True
    decoder_sparse_step: Annotated[
        Literal[1], Allowed("1 (layers without experts are not implemented)")
    ] = 1
    mlp_only_layers: DenseLayers = None


class Qwen35RopeSection(Qwen3RopeSection):
    """The rotary section of Qwen3.5."""

    mrope_section: Sections = (11, 11, 10)
    rope_theta: Theta = 10_000.0
    partial_rotary_factor: Share | None = None


class Qwen35TextSection(Qwen3TextSection):
    """`text_config` of Qwen3.5."""

    vocab_size: Vocabulary = 248320
    intermediate_size: Width = 12288
    num_attention_heads: Depth = 16
    num_key_value_heads: Depth | None = 4
    head_dim: Width | None = 256
    rope_theta: Theta = 10_000.0
    rope_parameters: Annotated[Qwen35RopeSection | None, BeforeValidator(empty_to_none)] = None
    rope_scaling: Annotated[Qwen35RopeSection | None, BeforeValidator(empty_to_none)] = None
    max_position_embeddings: Positions = 32768
    partial_rotary_factor: Share = 0.25
    attn_output_gate: Annotated[
        Literal[True], Allowed("true (queries without a gate are not implemented)")
    ] = True
    full_attention_interval: Depth = 4
    layer_types: tuple[LayerType, ...] | None = None
    linear_conv_kernel_dim: Annotated[int, Integer(2, 64, integral=True)] = 4
    linear_key_head_dim: Width = 128
    linear_value_head_dim: Width = 128
    linear_num_key_heads: Depth = 16
    linear_num_value_heads: Depth = 32
    mtp_num_hidden_layers: Annotated[int, Integer(0, DEPTH, integral=True)] = 0
    mtp_use_dedicated_embeddings: Annotated[
        Literal[False], Allowed("false (an embedding of its own is not implemented)")
    ] = False

    @property
    def rope(self) -> Qwen35RopeSection:
        """The rotary section of either generation."""
        return self.rope_parameters or self.rope_scaling or Qwen35RopeSection()

    @property
    def rotary_share(self) -> float:
        """Share of the channels of a head that are rotated."""
        share = self.rope.partial_rotary_factor
        return float(self.partial_rotary_factor if share is None else share)

    @property
    def types(self) -> tuple[LayerType, ...]:
        """The type of each layer."""
        if self.layer_types:
            return self.layer_types
        every = self.full_attention_interval
        return tuple(
            "linear_attention" if (index + 1) % every else "full_attention"
            for index in range(self.num_hidden_layers)
        )


class Qwen35MoeTextSection(Qwen35TextSection):
    """`text_config` of Qwen3.5 with a mixture of experts in every layer."""

    hidden_size: Width = 2048
    intermediate_size: Width = 5632  # of dense layers, which no model has
    num_hidden_layers: Depth = 40
    num_key_value_heads: Depth | None = 2
    num_experts: Depth = 256
    num_experts_per_tok: Depth = 8
    moe_intermediate_size: Width = 512
    shared_expert_intermediate_size: Width = 512
    mlp_only_layers: DenseLayers = None


class TokenSection(Section):
    """Ids of the tokens that join images and text, at the top level; None: there is none."""

    image_token_id: Token
    video_token_id: Token | None = None
    vision_start_token_id: Token | None = None
    vision_end_token_id: Token | None = None


class Qwen2TokenSection(TokenSection):
    """The ids of Qwen2's vocabulary."""

    image_token_id: Token = 151655
    video_token_id: Token = 151656
    vision_start_token_id: Token = 151652
    vision_end_token_id: Token = 151653


class Qwen35TokenSection(TokenSection):
    """The ids of Qwen3.5's vocabulary."""

    image_token_id: Token = 248056
    video_token_id: Token = 248057
    vision_start_token_id: Token = 248053
    vision_end_token_id: Token = 248054
