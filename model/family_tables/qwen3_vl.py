"""Qwen3-VL (arXiv 2511.21631): a LayerNorm tower with DeepStack, and a decoder with head norms."""

from __future__ import annotations

from dataclasses import replace

from ..deepstack_tower import DeepstackTower, feature_keys
from ..text import TextModel
from . import steps
from .entries import BlockLinear, NormBinding, PaddedWidth
from .qwen2_stages import DECODER, HEAD, VISION_ATTENTION, VISION_VALUE
from .stage import Stage
from .table import Family

_VISION = Stage(
    name="vision",
    part="tower",
    path="visual.blocks.{}",
    count=lambda config: config.vision.depth,
    entry=("visual.patch_embed", "visual.pos_embed"),
    enter=steps.embed_patches,
    step=steps.run_tower_block,
    per_patch=True,
    linears=(
        *VISION_ATTENTION,
        BlockLinear("mlp.linear_fc1", "vision", "vision_mlp", bias=True, tap="fc1"),
        BlockLinear(
            "mlp.linear_fc2", "vision_mlp", "vision", bias=True, tap="fc2", input_split=True
        ),
    ),
    norms=(NormBinding("norm1", ("attn.qkv",)), NormBinding("norm2", ("mlp.linear_fc1",))),
    pairs=(VISION_VALUE,),  # not linear_fc1 -> linear_fc2: GELU between them is not linear
    padded=(  # GELU of a zero channel is zero
        PaddedWidth(
            "vision_mlp",
            ("mlp.linear_fc1",),
            ("mlp.linear_fc2",),
            ("vision_config", "intermediate_size"),
        ),
    ),
)

_MERGER_LINEARS = (
    BlockLinear("linear_fc1", "merged", "merged", bias=True, tap="merger_in"),
    BlockLinear("linear_fc2", "merged", "hidden", bias=True, tap="merger_out", input_split=True),
)

_DEEPSTACK = Stage(
    name="deepstack",
    part="tower",
    path="visual.deepstack_merger_list.{}",
    count=lambda config: len(config.vision.deepstack_visual_indexes),
    step=steps.merge_kept,
    output="deepstack.{}",
    linears=_MERGER_LINEARS,
    norms=(NormBinding("norm", ("linear_fc1",)),),  # over all merged patches together
)

_MERGER = Stage(
    name="merger",
    part="tower",
    path="visual.merger",
    count=lambda config: 1,
    step=steps.merge_patches,
    leave=steps.select_features,
    linears=_MERGER_LINEARS,
    # norm normalizes single patches; linear_fc1 reads four of them concatenated.
    norms=(NormBinding("norm", ("linear_fc1",), tiles=4),),
)

# No binding passes through q_norm and k_norm: they undo a scale of their inputs.
_DECODER = replace(DECODER, linears=tuple(replace(each, bias=False) for each in DECODER.linears))

QWEN3_VL = Family(
    name="qwen3_vl",
    stages=(_VISION, _DEEPSTACK, _MERGER, _DECODER, HEAD),
    build_tower=DeepstackTower,
    build_decoder=TextModel,
    mrope_layout="interleaved",
    features=lambda config: feature_keys(config.vision),
)
