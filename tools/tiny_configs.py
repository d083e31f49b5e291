"""Configurations of the built-in models by family, as content of their JSON files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tiny_tokenizer
from tokenizers import Tokenizer

HIDDEN = 256
QWEN3_PREPROCESSOR: Mapping[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    "processor_class": "Qwen3VLProcessor",
    "size": {"shortest_edge": 3136, "longest_edge": 12845056},
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
PREPROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "qwen2_5_vl": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": 3136,
        "max_pixels": 12845056,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "qwen3_vl": QWEN3_PREPROCESSOR,
    "qwen3_5": QWEN3_PREPROCESSOR,
}
"""Content of preprocessor_config.json by family."""


def token_ids(tokenizer: Tokenizer) -> dict[str, int | None]:
    """Ids of the special tokens."""
    return {name: tokenizer.token_to_id(name) for name in tiny_tokenizer.SPECIAL}


def qwen2_5_vl(tokenizer: Tokenizer) -> dict[str, Any]:
    """Content of config.json of `tiny`, in the hub's (flat) form."""
    ids = token_ids(tokenizer)
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "attention_dropout": 0.0,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|im_end|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "vision_token_id": ids["<|vision_pad|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": 768,
        "max_position_embeddings": 8192,
        "max_window_layers": 5,
        "num_attention_heads": 4,
        "num_hidden_layers": 5,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000.0,
        # The width section has the lowest frequencies: with the usual third of so few pairs, a
        # model could not distinguish neighbouring columns of an image with four.
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 4, 26]},
        "sliding_window": 8192,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": tiny_tokenizer.VOCAB_SIZE,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 4,
            "hidden_act": "silu",
            "hidden_size": 192,
            "intermediate_size": 516,
            "num_heads": 4,
            "in_chans": 3,
            "out_hidden_size": HIDDEN,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
            "temporal_patch_size": 2,
        },
    }


def qwen3_vl(tokenizer: Tokenizer) -> dict[str, Any]:
    """Content of config.json of `tiny3`, in the hub's (nested) form.

    The heads together are wider than the hidden state, and no width of the tower is a multiple of
    32, as in published models. Patches are those of `tiny`, 14 pixels wide instead of 16: glyphs
    are drawn in cells of this size.
    """
    ids = token_ids(tokenizer)
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "dtype": "bfloat16",
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": 640,
            "max_position_embeddings": 8192,
            "num_attention_heads": 6,
            "num_hidden_layers": 5,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000.0,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_interleaved": True,
                "mrope_section": [12, 10, 10],
            },
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": tiny_tokenizer.VOCAB_SIZE,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 4,
            "deepstack_visual_indexes": [0, 2],
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 176,
            "intermediate_size": 516,
            "num_heads": 4,
            "num_position_embeddings": 256,
            "in_channels": 3,
            "out_hidden_size": HIDDEN,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.02,
        },
    }


def qwen3_5(tokenizer: Tokenizer) -> dict[str, Any]:
    """Content of config.json of `tiny3.5`, in the hub's (nested) form.

    Three of four decoder layers have linear attention, with two value heads per key head as in the
    larger published models. A quarter of each head is rotated, with frequencies that are every
    fourth of `tiny3`'s. The tower is that of `tiny3` without DeepStack.
    """
    ids, like = token_ids(tokenizer), qwen3_vl(tokenizer)
    layers, interval = 8, 4
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_5_text",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "attn_output_gate": True,
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "dtype": "bfloat16",
            "full_attention_interval": interval,
            "head_dim": 64,
            "hidden_act": "silu",
            "hidden_size": HIDDEN,
            "initializer_range": 0.02,
            "intermediate_size": 384,
            "layer_types": [
                "linear_attention" if (index + 1) % interval else "full_attention"
                for index in range(layers)
            ],
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 32,
            "linear_num_key_heads": 4,
            "linear_num_value_heads": 8,
            "linear_value_head_dim": 32,
            "mamba_ssm_dtype": "float32",
            "max_position_embeddings": 8192,
            "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": False,
            "num_attention_heads": 6,
            "num_hidden_layers": layers,
            "num_key_value_heads": 2,
            "partial_rotary_factor": 0.25,
            "rms_norm_eps": 1e-06,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1000.0,
                "partial_rotary_factor": 0.25,
                "mrope_interleaved": True,
                "mrope_section": [3, 3, 2],
            },
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": tiny_tokenizer.THINKING_VOCAB_SIZE,
        },
        "vision_config": {
            **like["vision_config"],
            "model_type": "qwen3_5",
            "deepstack_visual_indexes": [],
        },
    }


PREFIXES: Mapping[str, Mapping[str, str]] = {
    "qwen2_5_vl": {},
    "qwen3_vl": {"visual.": "model.visual.", "model.": "model.language_model."},
    "qwen3_5": {"visual.": "model.visual.", "model.": "model.language_model."},
}
"""Prefixes of tensor names in the hub's files by family, where they differ from the modules'."""
CONFIGS: Mapping[str, Callable[[Tokenizer], dict[str, Any]]] = {
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_5": qwen3_5,
}


def stored_name(module_name: str, family: str) -> str:
    """Name of a tensor in the hub's files."""
    for prefix, stored in PREFIXES[family].items():
        if module_name.startswith(prefix):
            return stored + module_name.removeprefix(prefix)
    return module_name
