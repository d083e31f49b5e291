"""Qwen2-VL (arXiv 2409.12191): a vision tower with LayerNorm and QuickGELU."""

from __future__ import annotations

from ..text import TextModel
from ..vision import VisionTower
from . import steps
from .entries import BlockLinear, NormBinding
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
        BlockLinear("mlp.fc1", "vision", "vision_mlp", bias=True, tap="fc1"),
        BlockLinear("mlp.fc2", "vision_mlp", "vision", bias=True, tap="fc2", input_split=True),
    ),
    norms=(NormBinding("norm1", ("attn.qkv",)), NormBinding("norm2", ("mlp.fc1",))),
    pairs=(VISION_VALUE,),  # not fc1 -> fc2: QuickGELU between them is not linear
)

QWEN2_VL = Family(
    name="qwen2_vl",
    stages=(_VISION, MERGER, DECODER, HEAD),
    build_tower=VisionTower,
    build_decoder=TextModel,
    mrope_layout="sectioned",
)
