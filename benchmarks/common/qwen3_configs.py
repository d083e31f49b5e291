"""config.json of the published sizes of Qwen3-VL, with the widths of the files on the hub."""

from __future__ import annotations

from typing import Any, NamedTuple


class Size(NamedTuple):
    """Widths of a published model."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool = False
    vision_depth: int = 27
    expert: int = 0
    """Inner size of an expert; 0 without experts."""


SIZES = {
    "2b": Size(2048, 6144, 28, 16, 8, True, 24),
    "4b": Size(2560, 9728, 36, 32, 8, True, 24),
    "8b": Size(4096, 12288, 36, 32, 8),
    "32b": Size(5120, 25600, 64, 64, 8),
    "30b-a3b": Size(2048, 6144, 48, 32, 4, expert=768),
    "235b-a22b": Size(4096, 12288, 94, 64, 4, expert=1536),
}
EXPERTS, ACTIVE = 128, 8
VOCABULARY, DEVIATION = 151936, 0.02
TOWERS = {24: (1024, 4096, (5, 11, 17)), 27: (1152, 4304, (8, 16, 24))}
"""Width, inner width and the blocks with DeepStack features, by depth."""
TOKENS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}


def config_of(size: str, layers: int | None = None) -> dict[str, Any]:
    """Build the content of config.json.

    Args:
        size: a key of `SIZES`.
        layers: number of decoder layers; None for all. With fewer than three, as many DeepStack
            features, each of which is added after a layer of its own.
    """
    of = SIZES[size]
    kind, name = ("qwen3_vl_moe", "Qwen3VLMoe") if of.expert else ("qwen3_vl", "Qwen3VL")
    width, inner, deepstack = TOWERS[of.vision_depth]
    text: dict[str, Any] = {
        "model_type": f"{kind}_text",
        "attention_bias": False,
        "dtype": "bfloat16",
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": of.hidden,
        "initializer_range": DEVIATION,
        "intermediate_size": of.inner,
        "max_position_embeddings": 262144,
        "num_attention_heads": of.heads,
        "num_hidden_layers": of.layers if layers is None else layers,
        "num_key_value_heads": of.kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "mrope_interleaved": True,
            "mrope_section": [24, 20, 20],
            "rope_type": "default",
        },
        "rope_theta": 5000000,
        "vocab_size": VOCABULARY,
    }
    if of.expert:
        text |= {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "moe_intermediate_size": of.expert,
            "norm_topk_prob": True,
            "num_experts": EXPERTS,
            "num_experts_per_tok": ACTIVE,
        }
    else:
        text["tie_word_embeddings"] = of.tied
    vision = {
        "model_type": kind,
        "deepstack_visual_indexes": list(deepstack[:layers]),
        "depth": of.vision_depth,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": width,
        "in_channels": 3,
        "initializer_range": DEVIATION,
        "intermediate_size": inner,
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": of.hidden,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": [f"{name}ForConditionalGeneration"],
        **TOKENS,
        "model_type": kind,
        "text_config": text,
        "tie_word_embeddings": of.tied,
        "transformers_version": "4.57.0.dev0",
        "vision_config": vision,
    }
