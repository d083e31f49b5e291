"""Configuration files of onnxruntime-genai: `genai_config.json` and `processor_config.json`.

Format: the C++ class Config and the operations of onnxruntime-extensions, version 0.18.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..text_graph import PARTS

MODEL_TYPE = "qwen2_5_vl"
"""Of the runtime's own table; the types of all Qwen-VL families have the same code."""
IMAGES = "processor_config.json"


def genai_config(host: Mapping[str, Any], *, pad_token: int) -> dict[str, Any]:
    """Describe the graphs and the greedy search.

    Args:
        host: result of `describe_host`.
        pad_token: id of a token that no prompt contains: the runtime masks it.
    """
    text, tokens = host["text"], host["tokens"]
    return {
        "model": {
            "type": MODEL_TYPE,
            "context_length": text["max_positions"],
            "vocab_size": text["vocab_size"],
            "bos_token_id": pad_token,
            "eos_token_id": tokens["end"],
            "pad_token_id": pad_token,
            "image_token_id": tokens["image"],
            "video_token_id": tokens["video"],
            "vision_start_token_id": tokens["vision_start"],
            "decoder": _decoder(text),
            "embedding": {
                "filename": "embedding.onnx",
                "inputs": _same("input_ids", "image_features"),
                "outputs": _same("inputs_embeds"),
            },
            "vision": _vision(host["vision"]),
        },
        "search": {
            "do_sample": False,
            "max_length": text["max_positions"],
            "num_beams": 1,
            # A shared buffer needs the operator GroupQueryAttention.
            "past_present_share_buffer": False,
        },
    }


def _decoder(text: Mapping[str, Any]) -> dict[str, Any]:
    past = {f"past_{part}_names": f"past_key_values.%d.{part}" for part in PARTS}
    present = {f"present_{part}_names": f"present.%d.{part}" for part in PARTS}
    return {
        "filename": "text.onnx",
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "head_size": text["head_dim"],
        "hidden_size": text["hidden_size"],
        "num_attention_heads": text["heads"],
        "num_key_value_heads": text["kv_heads"],
        "num_hidden_layers": text["layers"],
        "inputs": {**_same("inputs_embeds", "attention_mask", "position_ids"), **past},
        "outputs": {**_same("logits"), **present},
    }


def _vision(vision: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "filename": "vision.onnx",
        "config_filename": IMAGES,
        "spatial_merge_size": vision["merge_size"],
        "patch_size": vision["patch_size"],
        "tokens_per_second": float(vision["tokens_per_second"]),
        "inputs": _same("pixel_values", "image_grid_thw"),
        "outputs": _same("image_features"),
    }


def _same(*names: str) -> dict[str, str]:
    """Map the runtime's names of values to equal ones of the graphs."""
    return {name: name for name in names}


def image_config(host: Mapping[str, Any]) -> dict[str, Any]:
    """Describe the preprocessing of images as a list of operations.

    Args:
        host: result of `describe_host`, with settings of images.
    """
    image, vision = host["image"], host["vision"]
    sizes = {name: vision[name] for name in ("patch_size", "merge_size")}
    bounds = {name: image[name] for name in ("min_pixels", "max_pixels")}
    # Width and height are required, and replaced by those of smart_resize.
    size = {"width": vision["patch_size"], "height": vision["patch_size"]}
    operations: dict[str, dict[str, Any]] = {
        "DecodeImage": {"color_space": "RGB"},
        "ConvertRGB": {},
        "Resize": {**size, "interpolation": "CUBIC", "smart_resize": 1, **bounds, **sizes},
        "Rescale": {"rescale_factor": image["rescale_factor"]},
        "Normalize": {"mean": image["mean"], "std": image["std"], "qwen2_5_vl": 1},
        "PatchImage": {"temporal_patch_size": vision["temporal_patch_size"], **sizes},
    }
    transforms = [
        {"operation": {"name": name.lower(), "type": name, "attrs": attributes}}
        for name, attributes in operations.items()
    ]
    return {"processor": {"name": "qwen2_5_image_processor", "transforms": transforms}}
