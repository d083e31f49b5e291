"""Qwen2.5-VL (arXiv 2502.13923): a vision tower with RMSNorm, SwiGLU and window attention."""

from __future__ import annotations

from ..text import TextModel
from ..vision import VisionTower
from . import steps
from .entries import BlockLinear, NormBinding, PaddedWidth, PairBinding
from .qwen2_stages import DECODER, HEAD, MERGER, VISION_ATTENTION, VISION_VALUE
from .stage import Stage
from .table import Family

_VISION = Stage(
    name="vision",
    part="tower",
    path="visual.blocks.{}",
    count=lambda config: config.vision.depth,
    entry=("visual.patch_embed",),
    enter=steps.embed_patches,
    step=steps.run_tower_block,
    per_patch=True,
    linears=(
        *VISION_ATTENTION,
        BlockLinear("mlp.gate_proj", "vision", "vision_mlp", bias=True, tap="gate_up"),
        BlockLinear("mlp.up_proj", "vision", "vision_mlp", bias=True, tap="gate_up"),
        BlockLinear(
            "mlp.down_proj", "vision_mlp", "vision", bias=True, tap="down", input_split=True
        ),
    ),
    norms=(
        NormBinding("norm1", ("attn.qkv",)),
        NormBinding("norm2", ("mlp.gate_proj", "mlp.up_proj")),
    ),
    # SwiGLU is linear in up, not in gate.
    pairs=(VISION_VALUE, PairBinding("mlp.up_proj", "mlp.down_proj")),
    fused=(("mlp.gate_proj", "mlp.up_proj"),),
    padded=(
        PaddedWidth(
            "vision_mlp",
            ("mlp.gate_proj", "mlp.up_proj"),
            ("mlp.down_proj",),
            ("vision_config", "intermediate_size"),
        ),
    ),
)

QWEN2_5_VL = Family(
    name="qwen2_5_vl",
    stages=(_VISION, MERGER, DECODER, HEAD),
    build_tower=VisionTower,
    build_decoder=TextModel,
    mrope_layout="sectioned",
)
