"""Sections of `config.json` as files spell them, each number within bounds that a model can have.

Unknown keys are ignored: every library adds some of its own. Missing keys take the defaults of the
published configurations. `config.py` turns the sections into the sizes that the model is built of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ..common.validation import Allowed, Integer, Real, Truthy, empty_to_none

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
Theta = Annotated[float, Real(above=0, most=1e12)]


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


class RopeSection(Section):
    """`rope_scaling`, or `rope_parameters` of newer files."""

    rope_type: Annotated[
        Literal["default", "mrope"],
        Allowed("default, mrope (long-context scaling is not implemented)"),
    ] = Field(default="default", validation_alias=AliasChoices("rope_type", "type"))
    mrope_section: Annotated[
        tuple[Pairs, Pairs, Pairs],
        Allowed("3 whole numbers, the rotary pairs for time, height and width"),
    ] = (16, 24, 24)
    rope_theta: Theta = 1_000_000.0


Rope = Annotated[RopeSection | None, BeforeValidator(empty_to_none)]


class TextSection(Section):
    """Keys of the decoder: in `text_config`, or at the top level of flat files."""

    vocab_size: Annotated[int, Integer(1, VOCABULARY, integral=True)] = 152064
    hidden_size: Width = 8192
    intermediate_size: Width = 29568
    num_hidden_layers: Depth = 80
    num_attention_heads: Depth = 64
    num_key_value_heads: Depth | None = 8
    head_dim: Annotated[Width | None, BeforeValidator(empty_to_none)] = None
    hidden_act: Literal["silu"] = "silu"
    rms_norm_eps: Annotated[float, Real(above=0, most=1.0)] = 1e-5
    rope_theta: Theta = 1_000_000.0
    rope_parameters: Rope = None
    rope_scaling: Rope = None
    max_position_embeddings: Annotated[int, Integer(1, POSITIONS, integral=True)] = 32768
    use_sliding_window: Truthy = False
    max_window_layers: Depth = 80

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

    @model_validator(mode="after")
    def _check_window(self) -> Self:
        if self.use_sliding_window and self.num_hidden_layers > self.max_window_layers:
            raise ValueError(
                "use_sliding_window is true; allowed: false (sliding-window attention is not "
                "implemented)"
            )
        return self

    @property
    def rope(self) -> RopeSection:
        """The rotary section of either generation."""
        return self.rope_parameters or self.rope_scaling or RopeSection()

    @property
    def rope_base(self) -> float:
        """`rope_theta`, which newer files have in the rotary section."""
        rope = self.rope
        return rope.rope_theta if "rope_theta" in rope.model_fields_set else self.rope_theta


class TokenSection(Section):
    """Ids of the tokens that join images and text, at the top level."""

    image_token_id: Token = 151655
    video_token_id: Token = 151656
    vision_start_token_id: Token = 151652
    vision_end_token_id: Token = 151653
