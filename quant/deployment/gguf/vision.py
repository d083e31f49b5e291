"""The mmproj file: vision tower and merger, as llama.cpp's `tools/mtmd/clip.cpp` reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ....model.config import ModelConfig
from ....model.processing.pixel_settings import PixelSettings
from ..source import ExportSource
from .naming import Naming, Rewrite, list_tensors
from .tensors import FileTensor, FloatType, float_tensor

PROJECTORS = {
    "qwen2_vl": "qwen2vl_merger",
    "qwen2_5_vl": "qwen2.5vl_merger",
    "qwen3_vl": "qwen3vl_merger",
    "qwen3_vl_moe": "qwen3vl_merger",
    "qwen3_5": "qwen3vl_merger",
    "qwen3_5_moe": "qwen3vl_merger",
}
"""Projector type of llama.cpp by family."""
NORM_EPSILON = 1e-6
"""Of all norms of the towers, a constant of the families."""
DUMMY_SIDE = 560
"""Image side of towers without a position table, used for a first pass without results."""
PATCH_WEIGHT, POSITIONS = "visual.patch_embed.proj.weight", "visual.pos_embed.weight"

_INSIDE = {
    "norm1": "ln1",
    "norm2": "ln2",
    "attn.qkv": "attn_qkv",
    "attn.proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "mlp.linear_fc1": "ffn_up",
    "mlp.linear_fc2": "ffn_down",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_MODULES = {
    "visual.patch_embed.proj": "v.patch_embd",
    "visual.merger.ln_q": "v.post_ln",
    "visual.merger.norm": "v.post_ln",
    "visual.merger.mlp.0": "mm.0",
    "visual.merger.mlp.2": "mm.2",
    "visual.merger.linear_fc1": "mm.0",
    "visual.merger.linear_fc2": "mm.2",
}
_DEEPSTACK = {"norm": "norm", "linear_fc1": "fc1", "linear_fc2": "fc2"}


def naming(config: ModelConfig) -> Naming:
    """Return the names of the tensors; mergers of DeepStack have the number of their block."""
    deepstack = {
        f"visual.deepstack_merger_list.{index}.{module}": f"v.deepstack.{block}.{name}"
        for index, block in enumerate(config.vision.deepstack_visual_indexes)
        for module, name in _DEEPSTACK.items()
    }
    return Naming(
        parts=("tower",),
        prefixes=("visual",),
        modules=_MODULES | deepstack,
        blocks={"visual.blocks": "v.blk"},
        inside=_INSIDE,
        unlisted=(PATCH_WEIGHT, POSITIONS),
    )


def vision_tensors(source: ExportSource, float_type: FloatType | None) -> list[FileTensor]:
    """List the tensors of the mmproj file; see `list_tensors`."""
    config = source.config
    splits: dict[str, Rewrite] = {}
    if PROJECTORS[config.family] != "qwen3vl_merger":  # has q, k and v in separate tensors
        splits = {f"attn_qkv.{leaf}": _split_qkv for leaf in ("weight", "bias")}
    tensors = [
        # Convolutions over the two frames of a patch; a still image is both of them.
        float_tensor(source, PATCH_WEIGHT, "v.patch_embd.weight", change=lambda w: w[:, :, 0]),
        float_tensor(source, PATCH_WEIGHT, "v.patch_embd.weight.1", change=lambda w: w[:, :, 1]),
    ]
    if config.vision.num_position_embeddings:
        tensors.append(float_tensor(source, POSITIONS, "v.position_embd.weight"))
    return [*tensors, *list_tensors(source, naming(config), float_type, splits)]


def _split_qkv(tensor: FileTensor) -> list[FileTensor]:
    parts = np.arange(tensor.shape[0]).reshape(3, -1)
    return [
        tensor.with_rows(tensor.name.replace("attn_qkv", f"attn_{letter}"), rows)
        for letter, rows in zip("qkv", parts, strict=True)
    ]


def vision_keys(config: ModelConfig, pixels: PixelSettings) -> dict[str, Any]:
    """Return the keys of the mmproj file, by their full names."""
    vision, projector = config.vision, PROJECTORS[config.family]
    side = vision.position_side * vision.patch_size if vision.position_side else DUMMY_SIDE
    keys: dict[str, Any] = {
        "has_vision_encoder": True,
        "projector_type": projector,
        "vision.image_size": side,
        "vision.patch_size": vision.patch_size,
        "vision.embedding_length": vision.hidden_size,
        "vision.feed_forward_length": vision.intermediate_size,
        "vision.block_count": vision.depth,
        "vision.projection_dim": vision.out_hidden_size,
        "vision.attention.head_count": vision.num_heads,
        "vision.attention.layer_norm_epsilon": NORM_EPSILON,
        "vision.image_mean": list(pixels.mean),
        "vision.image_std": list(pixels.std),
        "vision.spatial_merge_size": vision.spatial_merge_size,
    }
    if projector == "qwen2.5vl_merger":
        keys |= {"use_silu": True, "vision.n_wa_pattern": window_pattern(config)}
    if projector == "qwen3vl_merger":
        deepstack = vision.deepstack_visual_indexes
        keys["use_gelu"] = True
        keys["vision.is_deepstack_layers"] = [i in deepstack for i in range(vision.depth)]
    return {f"clip.{name}": value for name, value in keys.items()}


def window_pattern(config: ModelConfig) -> int:
    """Return n if every n-th block of the tower, and no other, has full attention.

    Raises:
        ValueError: they are not spaced equally.
    """
    vision = config.vision
    full = [index for index in range(vision.depth) if vision.has_full_attention(index)]
    every = full[0] + 1 if full else vision.depth + 1
    if full != list(range(every - 1, vision.depth, every)):
        raise ValueError(
            f"fullatt_block_indexes are {', '.join(map(str, full))}; llama.cpp needs every n-th "
            "block of the tower to have full attention"
        )
    return every
