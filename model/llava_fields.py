"""Sections of LLaVA's `config.json`, see `config_fields.py`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from ..common.validation import Allowed, Integer, empty_to_none
from .config_fields import (
    DEPTH,
    WIDTH,
    Depth,
    Epsilon,
    Positions,
    RopeSection,
    Section,
    Sections,
    TextSection,
    Theta,
    Token,
    TokenSection,
    Vocabulary,
    Width,
)


class PlainRopeSection(RopeSection):
    """The rotary section of decoders whose tokens have one position."""

    rope_type: Annotated[
        Literal["default"], Allowed("default (long-context scaling is not implemented)")
    ] = Field(default="default", validation_alias=AliasChoices("rope_type", "type"))
    mrope_section: Sections = (0, 0, 0)
    rope_theta: Theta = 10_000.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "mrope_section" in self.model_fields_set:
            raise ValueError(
                "mrope_section is given; allowed: none, because the tokens of this model have one "
                "position each; remove it"
            )
        return self


class LlavaSection(Section):
    """Keys of LLaVA's file at the top level."""

    vision_feature_layer: Annotated[
        int,
        Integer(-DEPTH, DEPTH, integral=True),
        Allowed("one index of a layer, such as -2"),
    ] = -2
    vision_feature_select_strategy: Annotated[
        Literal["default"], Allowed("default (features of the class token are not implemented)")
    ] = "default"
    projector_hidden_act: Literal["gelu"] = "gelu"
    multimodal_projector_bias: Annotated[
        Literal[True], Allowed("true (a projector without biases is not implemented)")
    ] = True


class ClipVisionSection(Section):
    """`vision_config` of LLaVA-1.5."""

    model_type: Annotated[
        Literal["clip_vision_model"],
        Allowed("clip_vision_model (SigLIP and other towers are not implemented)"),
    ] = "clip_vision_model"
    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_hidden_layers: Depth = 12
    num_attention_heads: Depth = 12
    num_channels: Annotated[int, Integer(1, 16, integral=True)] = 3
    image_size: Annotated[int, Integer(1, WIDTH, integral=True)] = 224
    patch_size: Annotated[int, Integer(1, 256, integral=True)] = 32
    hidden_act: Literal["quick_gelu"] = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5


class LlavaTextSection(TextSection):
    """Keys of LLaVA's decoders: in `text_config`, or at the top level."""

    rope_theta: Theta = 10_000.0
    head_dim: Annotated[Width | None, BeforeValidator(empty_to_none)] = None
    rope_parameters: Annotated[PlainRopeSection | None, BeforeValidator(empty_to_none)] = None
    rope_scaling: Annotated[PlainRopeSection | None, BeforeValidator(empty_to_none)] = None

    @property
    def rope(self) -> PlainRopeSection:
        """The rotary section of either generation."""
        return self.rope_parameters or self.rope_scaling or PlainRopeSection()


class LlamaTextSection(LlavaTextSection):
    """The decoder of Vicuna."""

    vocab_size: Vocabulary = 32000
    hidden_size: Width = 4096
    intermediate_size: Width = 11008
    num_hidden_layers: Depth = 32
    num_attention_heads: Depth = 32
    num_key_value_heads: Depth | None = None
    rms_norm_eps: Epsilon = 1e-6
    max_position_embeddings: Positions = 2048
    attention_bias: Annotated[Literal[False], Allowed("false (biases are not implemented)")] = False
    mlp_bias: Annotated[Literal[False], Allowed("false (biases are not implemented)")] = False


class LlavaQwen2TextSection(LlavaTextSection):
    """The decoder of Qwen2."""

    vocab_size: Vocabulary = 151936
    hidden_size: Width = 4096
    intermediate_size: Width = 22016
    num_hidden_layers: Depth = 32
    num_attention_heads: Depth = 32
    num_key_value_heads: Depth | None = 32
    rms_norm_eps: Epsilon = 1e-6
    max_position_embeddings: Positions = 32768
    use_sliding_window: Annotated[
        Literal[False], Allowed("false (sliding-window attention is not implemented)")
    ] = False


class LlavaTokenSection(TokenSection):
    """LLaVA has a token for images only; newer files spell it as Qwen's."""

    image_token_id: Token = Field(
        default=32000, validation_alias=AliasChoices("image_token_id", "image_token_index")
    )
    video_token_id: None = None
    vision_start_token_id: None = None
    vision_end_token_id: None = None
