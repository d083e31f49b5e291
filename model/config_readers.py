"""How the `config.json` of each model type becomes sizes: one row of a table per family.

Readers do not import torch, so that an unusable file is refused at once. A family has its other
table in `family_tables/`, which describes modules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..common.validation import parse
from .config_fields import (
    Qwen2TextSection,
    Qwen2TokenSection,
    Qwen2VisionSection,
    Qwen3MoeTextSection,
    Qwen3TextSection,
    Qwen3VisionSection,
    Qwen25VisionSection,
    Qwen35MoeTextSection,
    Qwen35TextSection,
    Qwen35TokenSection,
    Qwen35VisionSection,
    TokenSection,
)
from .llava_fields import (
    ClipVisionSection,
    LlamaTextSection,
    LlavaQwen2TextSection,
    LlavaSection,
    LlavaTokenSection,
)
from .qwen_v1_fields import (
    IMAGE_PAD_OFFSET,
    RESAMPLER_HEAD,
    STORED_POSITIONS,
    QwenV1TextSection,
    QwenV1VisionSection,
)
from .sizes import ExpertSizes, LengthScaling, LinearAttentionSizes, TextConfig, VisionConfig

FILE = "config.json"
REMEDY = "take the file from the original checkpoint"

Raw = Mapping[str, Any]
"""The whole file."""


@dataclass(frozen=True)
class ConfigReader:
    """Functions of the whole file; they raise `ValueError` for a value that is not supported."""

    vision: Callable[[Raw], VisionConfig]
    text: Callable[[Raw], TextConfig]
    tokens: type[TokenSection] = Qwen2TokenSection
    """Its keys are at the top level, or `token_keys` finds them."""
    token_keys: Callable[[Raw], Raw] = lambda raw: raw


def text_section(raw: Raw) -> tuple[Raw, str]:
    """Return the object with the decoder's keys, and its path: `text_config` or the whole file."""
    nested = raw.get("text_config")
    return (nested, "text_config") if isinstance(nested, Mapping) else (raw, "")


def _qwen2_vision(raw: Raw) -> VisionConfig:
    section = parse(
        Qwen2VisionSection, raw.get("vision_config"), FILE, "vision_config", remedy=REMEDY
    )
    sizes = section.model_dump(exclude={"mlp_ratio"})
    width = int(section.hidden_size * section.mlp_ratio)
    return VisionConfig(**sizes, intermediate_size=width, norm="layer")


def _qwen2_5_vision(raw: Raw) -> VisionConfig:
    section = parse(
        Qwen25VisionSection, raw.get("vision_config"), FILE, "vision_config", remedy=REMEDY
    )
    return VisionConfig(**section.model_dump(), norm="rms")


def _qwen3_vision(
    raw: Raw, section_type: type[Qwen3VisionSection] = Qwen3VisionSection
) -> VisionConfig:
    section = parse(section_type, raw.get("vision_config"), FILE, "vision_config", remedy=REMEDY)
    return VisionConfig(**section.model_dump(), norm="layer", separate_frames=True)


def _qwen2_text(raw: Raw) -> TextConfig:
    text_raw, at = text_section(raw)
    section = parse(Qwen2TextSection, text_raw, FILE, at, remedy=REMEDY)
    heads = section.num_attention_heads
    head_dim = section.head_dim or section.hidden_size // heads
    if head_dim * heads != section.hidden_size:
        raise ValueError(
            f"config.json: hidden_size {section.hidden_size} is not num_attention_heads "
            f"{heads} x head_dim {head_dim}; correct one of them"
        )
    # Some nested files have the flag only inside text_config, and a default of false outside.
    tied = bool(raw.get("tie_word_embeddings")) or bool(text_raw.get("tie_word_embeddings"))
    return TextConfig(
        **section.common_sizes(section.rope), head_dim=head_dim, tie_word_embeddings=tied
    )


def _qwen3_text(raw: Raw) -> TextConfig:
    section = parse(Qwen3TextSection, raw.get("text_config"), FILE, "text_config", remedy=REMEDY)
    return _qwen3_sizes(raw, section, None)


def _qwen3_moe_text(raw: Raw) -> TextConfig:
    section = parse(Qwen3MoeTextSection, raw.get("text_config"), FILE, "text_config", remedy=REMEDY)
    experts = ExpertSizes(
        section.num_experts,
        section.num_experts_per_tok,
        section.moe_intermediate_size,
        input_major=(input_major := _input_major(raw)),
        orientation_unsure=not input_major,
    )
    return _qwen3_sizes(raw, section, experts)


def _qwen3_sizes(
    raw: Raw,
    section: Qwen3TextSection,
    experts: ExpertSizes | None,
    rotary_share: float = 1.0,
) -> TextConfig:
    return TextConfig(
        **section.common_sizes(section.rope),
        head_dim=section.head_dim or section.hidden_size // section.num_attention_heads,
        # Only the flag at the top level: that of text_config is a default which does not apply.
        tie_word_embeddings=bool(raw.get("tie_word_embeddings")),
        qkv_bias=False,
        qk_norm=True,
        yarn=section.rope.yarn,
        experts=experts,
        rotary_share=rotary_share,
    )


def _qwen3_5_vision(raw: Raw) -> VisionConfig:
    return _qwen3_vision(raw, Qwen35VisionSection)


def _qwen3_5_text(raw: Raw) -> TextConfig:
    section = parse(Qwen35TextSection, raw.get("text_config"), FILE, "text_config", remedy=REMEDY)
    return _qwen3_5_sizes(raw, section, None)


def _qwen3_5_moe_text(raw: Raw) -> TextConfig:
    section = parse(
        Qwen35MoeTextSection, raw.get("text_config"), FILE, "text_config", remedy=REMEDY
    )
    experts = ExpertSizes(
        section.num_experts,
        section.num_experts_per_tok,
        section.moe_intermediate_size,
        input_major=False,
        shared_intermediate_size=section.shared_expert_intermediate_size,
    )
    return _qwen3_5_sizes(raw, section, experts)


def _qwen3_5_sizes(raw: Raw, section: Qwen35TextSection, experts: ExpertSizes | None) -> TextConfig:
    linear = LinearAttentionSizes(
        section.linear_num_key_heads,
        section.linear_num_value_heads,
        section.linear_key_head_dim,
        section.linear_value_head_dim,
        section.linear_conv_kernel_dim,
    )
    return replace(
        _qwen3_sizes(raw, section, experts, rotary_share=section.rotary_share),
        norm_offset=1.0,
        query_gate=True,
        linear_attention=linear,
        layer_types=section.types,
        mtp_layers=section.mtp_num_hidden_layers,
    )


def _llava_vision(raw: Raw) -> VisionConfig:
    if not isinstance(raw.get("vision_config"), Mapping):
        raise ValueError(
            f"{FILE}: no vision_config, as in the original repository's form of LLaVA; allowed: a "
            "checkpoint converted to transformers (LlavaForConditionalGeneration)"
        )
    whole = parse(LlavaSection, raw, FILE, remedy=REMEDY)
    section = parse(ClipVisionSection, raw["vision_config"], FILE, "vision_config", remedy=REMEDY)
    stored, layer = section.num_hidden_layers, whole.vision_feature_layer
    # Feature 0 is the input of the first layer, and -1 the output of the last one.
    depth = layer if layer >= 0 else stored + 1 + layer
    if not 1 <= depth <= stored:
        raise ValueError(
            f"{FILE}: vision_feature_layer is {layer}; allowed: 1 to {stored} or {-stored} to -1, "
            f"the layers of the tower; {REMEDY}"
        )
    return VisionConfig(
        depth=depth,
        unused_layers=stored - depth,
        hidden_size=section.hidden_size,
        intermediate_size=section.intermediate_size,
        num_heads=section.num_attention_heads,
        out_hidden_size=_llava_text(raw).hidden_size,
        norm="layer",
        norm_eps=float(section.layer_norm_eps),
        hidden_act=section.hidden_act,
        in_channels=section.num_channels,
        patch_size=section.patch_size,
        temporal_patch_size=1,
        spatial_merge_size=1,
        num_position_embeddings=(section.image_size // section.patch_size) ** 2,
        image_size=section.image_size,
    )


def _llava_text(raw: Raw) -> TextConfig:
    text_raw, at = text_section(raw)
    is_llama = _llava_family(raw) == "llava"
    kind = LlamaTextSection if is_llama else LlavaQwen2TextSection
    section = parse(kind, text_raw, FILE, at, remedy=REMEDY)
    head_dim = section.head_dim or section.hidden_size // section.num_attention_heads
    sizes = section.common_sizes(section.rope)
    sizes["mrope_section"] = (head_dim // 2, 0, 0)
    tied = bool(raw.get("tie_word_embeddings")) or bool(text_raw.get("tie_word_embeddings"))
    return TextConfig(
        **sizes,
        head_dim=head_dim,
        tie_word_embeddings=tied,
        qkv_bias=not is_llama,
        mrope=False,
    )


_LLAVA_TEXTS = {"llama": "llava", "qwen2": "llava_qwen2"}


def _llava_family(raw: Raw) -> str:
    text_raw, at = text_section(raw)
    kind = text_raw.get("model_type", "llama") if at else "llama"
    if kind not in _LLAVA_TEXTS:
        raise ValueError(
            f"{FILE}: text_config.model_type is {kind!r}; allowed: {', '.join(_LLAVA_TEXTS)}; "
            "choose another LLaVA checkpoint"
        )
    return _LLAVA_TEXTS[kind]


def family_name(raw: Raw) -> str:
    """Return the name of the family of a config.json: its `model_type`, or a variant of it.

    Raises:
        ValueError: it is not supported.
    """
    kind = raw.get("model_type")
    if kind == "llava":
        return _llava_family(raw)
    allowed = [name for name in READERS if name not in _LLAVA_TEXTS.values()]
    if kind not in allowed:
        raise ValueError(
            f"config.json: model_type {kind!r} is not supported; allowed: "
            f"{', '.join([*allowed, 'llava'])}; choose a Qwen2-VL or later Qwen VL checkpoint, or "
            "LLaVA-1.5"
        )
    return str(kind)


def _input_major(raw: Raw) -> bool:
    """Tell the orientation of the tensors of all experts, by the library that saved them.

    Shapes cannot tell: with hidden_size = 2 x moe_intermediate_size both orientations have one.
    Published files (transformers 4) hold `[experts, in_features, out_features]`; those of
    transformers 5.2 and later `[experts, out_features, in_features]`. (5.0 and 5.1 write the
    weights of each expert under names of their own.)

    Raises:
        ValueError: the version cannot be read.
    """
    version = raw.get("transformers_version")
    if version is None:
        return True
    major = str(version).partition(".")[0]
    if not major.isdecimal():
        raise ValueError(
            f"{FILE}: transformers_version is {version!r}; allowed: a version such as 4.57.0, "
            f"which tells the orientation of the experts' weights; {REMEDY}"
        )
    return int(major) < 5


def _qwen_v1_section(raw: Raw) -> QwenV1VisionSection:
    if not isinstance(raw.get("visual"), Mapping):
        raise ValueError(
            f"{FILE}: model_type is 'qwen' without an object visual, as in the text models of "
            "2023; give a Qwen-VL checkpoint"
        )
    return parse(QwenV1VisionSection, raw["visual"], FILE, "visual", remedy=REMEDY)


def _qwen_v1_vision(raw: Raw) -> VisionConfig:
    section = _qwen_v1_section(raw)
    if not section.patches_per_query:
        raise ValueError(
            f"{FILE}: n_queries {section.n_queries} for images of {section.image_size} pixels in "
            f"patches of {section.patch_size}; allowed: a square that divides the patches of both "
            f"sides; {REMEDY}"
        )
    if section.out_hidden_size % RESAMPLER_HEAD:
        raise ValueError(
            f"{FILE}: output_dim {section.out_hidden_size} does not split into heads of "
            f"{RESAMPLER_HEAD} channels; {REMEDY}"
        )
    if section.out_hidden_size == section.hidden_size:
        raise ValueError(
            f"{FILE}: output_dim and width are both {section.hidden_size}, for which the resampler "
            f"has no kv_proj; that is not implemented; {REMEDY}"
        )
    return VisionConfig(
        depth=section.depth,
        hidden_size=section.hidden_size,
        intermediate_size=int(section.hidden_size * section.mlp_ratio),
        num_heads=section.num_heads,
        out_hidden_size=section.out_hidden_size,
        norm="layer",
        hidden_act="gelu",
        patch_size=section.patch_size,
        temporal_patch_size=1,
        spatial_merge_size=section.patches_per_query,
        num_position_embeddings=STORED_POSITIONS,
        image_size=section.image_size,
        squeezed=True,
    )


def _qwen_v1_text(raw: Raw) -> TextConfig:
    section = parse(QwenV1TextSection, raw, FILE, "", remedy=REMEDY)
    heads, width = section.num_attention_heads, section.hidden_size
    if section.kv_channels * heads != width:
        raise ValueError(
            f"{FILE}: hidden_size {width} is not num_attention_heads {heads} x kv_channels "
            f"{section.kv_channels}; correct one of them"
        )
    if section.intermediate_size % 2 or section.kv_channels % 2 or section.kv_channels < 4:
        raise ValueError(
            f"{FILE}: intermediate_size {section.intermediate_size} and kv_channels "
            f"{section.kv_channels}; allowed: even numbers, kv_channels at least 4; {REMEDY}"
        )
    return TextConfig(
        vocab_size=section.vocab_size,
        hidden_size=width,
        intermediate_size=section.intermediate_size // 2,
        num_hidden_layers=section.num_hidden_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=section.kv_channels,
        rms_norm_eps=float(section.layer_norm_epsilon),
        rope_theta=float(section.rotary_emb_base),
        mrope_section=(section.kv_channels // 2, 0, 0),
        mrope=False,
        tie_word_embeddings=False,
        max_position_embeddings=section.max_position_embeddings,
        length_scaling=LengthScaling(
            section.seq_length, section.use_dynamic_ntk, section.use_logn_attn
        ),
    )


def _qwen_v1_tokens(raw: Raw) -> Raw:
    return {"image_token_id": _qwen_v1_section(raw).image_start_id + IMAGE_PAD_OFFSET}


READERS: dict[str, ConfigReader] = {
    "qwen2_vl": ConfigReader(_qwen2_vision, _qwen2_text),
    "qwen2_5_vl": ConfigReader(_qwen2_5_vision, _qwen2_text),
    "qwen3_vl": ConfigReader(_qwen3_vision, _qwen3_text),
    "qwen3_vl_moe": ConfigReader(_qwen3_vision, _qwen3_moe_text),
    "qwen3_5": ConfigReader(_qwen3_5_vision, _qwen3_5_text, Qwen35TokenSection),
    "qwen3_5_moe": ConfigReader(_qwen3_5_vision, _qwen3_5_moe_text, Qwen35TokenSection),
    "qwen": ConfigReader(_qwen_v1_vision, _qwen_v1_text, TokenSection, _qwen_v1_tokens),
    "llava": ConfigReader(_llava_vision, _llava_text, LlavaTokenSection),
    "llava_qwen2": ConfigReader(_llava_vision, _llava_text, LlavaTokenSection),
}
"""By family, see `family_name`."""
