"""config.json of the published sizes of Qwen3.5, in the form of the files on the hub.

Widths: model cards and training scripts. Those of 122B-A10B and 397B-A17B give the published
numbers of parameters; their files were not at hand.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Size(NamedTuple):
    """Widths of a published model."""

    hidden: int
    inner: int
    """Of the MLP, or of an expert."""
    layers: int
    heads: int
    kv_heads: int
    value_heads: int
    """Of linear attention, which has 16 key heads."""
    tower: tuple[int, int, int, int] = (27, 1152, 4304, 16)
    """Depth, width, inner width and heads."""
    tied: bool = False
    experts: tuple[int, int] | None = None
    """All of them, and those of a token; None: a dense model."""


_SMALL_TOWER = (24, 1024, 4096, 16)
SIZES = {
    "0.8b": Size(1024, 3584, 24, 8, 2, 16, (12, 768, 3072, 12), True),
    "2b": Size(2048, 6144, 24, 8, 2, 16, _SMALL_TOWER, True),
    "4b": Size(2560, 9216, 32, 16, 4, 32, _SMALL_TOWER, True),
    "9b": Size(4096, 12288, 32, 16, 4, 32),
    "27b": Size(5120, 17408, 64, 24, 4, 48),
    "35b-a3b": Size(2048, 512, 40, 16, 2, 32, experts=(256, 8)),
    "122b-a10b": Size(3072, 1024, 48, 32, 2, 64, experts=(256, 8)),
    "397b-a17b": Size(4096, 1024, 60, 32, 2, 64, experts=(512, 10)),
}
VOCABULARY = 248320
TOKENS = {
    "image_token_id": 248056,
    "video_token_id": 248057,
    "vision_start_token_id": 248053,
    "vision_end_token_id": 248054,
}


def config_of(size: str, layers: int | None = None) -> dict[str, Any]:
    """Build the content of config.json.

    Args:
        size: a key of `SIZES`.
        layers: number of decoder layers; None for all. Every fourth has full attention.
    """
    of = SIZES[size]
    kind = "qwen3_5" if of.experts is None else "qwen3_5_moe"
    count = of.layers if layers is None else layers
    text: dict[str, Any] = {
        "model_type": f"{kind}_text",
        "attention_bias": False,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": of.hidden,
        "layer_types": [
            "full_attention" if (index + 1) % 4 == 0 else "linear_attention"
            for index in range(count)
        ],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": of.value_heads,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": of.heads,
        "num_hidden_layers": count,
        "num_key_value_heads": of.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "tie_word_embeddings": of.tied,
        "vocab_size": VOCABULARY,
    }
    if of.experts is None:
        text["intermediate_size"] = of.inner
    else:
        text |= {
            "moe_intermediate_size": of.inner,
            "num_experts": of.experts[0],
            "num_experts_per_tok": of.experts[1],
            "shared_expert_intermediate_size": of.inner,
        }
    depth, width, inner, heads = of.tower
    name = "Qwen3_5" if of.experts is None else "Qwen3_5Moe"
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        **TOKENS,
        "model_type": kind,
        "text_config": text,
        "tie_word_embeddings": of.tied,
        "vision_config": {
            "model_type": kind,
            "deepstack_visual_indexes": [],
            "depth": depth,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": width,
            "in_channels": 3,
            "intermediate_size": inner,
            "num_heads": heads,
            "num_position_embeddings": 2304,
            "out_hidden_size": of.hidden,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    }
