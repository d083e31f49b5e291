"""Qwen-VL of 2023 (arXiv 2308.12966), whose config.json calls its model type "qwen".

ViT-bigG tower, a resampler that makes every image the same number of features, and the decoder of
Qwen-7B, which projects queries, keys and values by one layer.
"""

from __future__ import annotations

from dataclasses import replace

from ..processing.chat_format import ChatFormat
from ..processing.qwen_v1_tokenizer import CHAT_TEMPLATE, IMAGE_PAD, build_tokenizer
from ..qwen_v1.decoder import QwenV1Decoder
from ..qwen_v1.tower import QwenV1Tower
from . import steps
from .entries import BlockLinear, NormBinding, PairBinding
from .qwen2_stages import DECODER, HEAD
from .stage import Stage
from .table import SIDE_FILES, Family

_VISION = Stage(
    name="vision",
    part="tower",
    path="visual.blocks.{}",
    count=lambda config: config.vision.depth,
    entry=("visual.patch_input",),
    enter=steps.embed_patches,
    step=steps.run_tower_block,
    per_patch=True,
    linears=(
        BlockLinear(
            "attn.in_proj",
            "vision",
            "vision_qkv",
            True,
            "qkv",
            row_parts=("vision_head", "vision_head", "vision_head"),  # of each head: q, k, v
        ),
        BlockLinear("attn.out_proj", "vision", "vision", True, "o", input_split=True),
        BlockLinear("mlp.c_fc", "vision", "vision_mlp", True, "fc1"),
        BlockLinear("mlp.c_proj", "vision_mlp", "vision", True, "fc2", input_split=True),
    ),
    norms=(NormBinding("ln_1", ("attn.in_proj",)), NormBinding("ln_2", ("mlp.c_fc",))),
    # No pair of values and out_proj, because values are not a run of rows, and none around GELU.
)

_RESAMPLER = Stage(
    name="merger",
    part="tower",
    path="visual.merger",
    count=lambda config: 1,
    step=steps.merge_patches,
    leave=steps.select_features,
    # The input projections of its attention are no linear layer, see `CrossAttention`.
    linears=(
        BlockLinear("kv_proj", "vision", "hidden", False, "resampler_in"),
        BlockLinear("attn.out_proj", "hidden", "hidden", True, "resampler_out", input_split=True),
    ),
)

_DECODER = replace(
    DECODER,
    linears=(
        BlockLinear("attn.c_attn", "hidden", "qkv", True, "qkv", row_parts=("q", "kv", "kv")),
        BlockLinear("attn.c_proj", "q", "hidden", False, "o", input_split=True),
        BlockLinear("mlp.w1", "hidden", "mlp", False, "gate_up"),
        BlockLinear("mlp.w2", "hidden", "mlp", False, "gate_up"),
        BlockLinear("mlp.c_proj", "mlp", "hidden", False, "down", input_split=True),
    ),
    norms=(NormBinding("ln_1", ("attn.c_attn",)), NormBinding("ln_2", ("mlp.w1", "mlp.w2"))),
    # Values are the last third of c_attn; SwiGLU is linear in w1, not in w2.
    pairs=(
        PairBinding("attn.c_attn", "attn.c_proj", part=(2, 3)),
        PairBinding("mlp.w1", "mlp.c_proj"),
    ),
    fused=(("mlp.w1", "mlp.w2"),),
    padded=(),  # one field of the config counts the rows of w1 and w2
)

CHAT = ChatFormat(
    image=IMAGE_PAD,
    video=None,
    default_template=CHAT_TEMPLATE,
    build_tokenizer=build_tokenizer,
)

QWEN_V1 = Family(
    name="qwen",
    stages=(_VISION, _RESAMPLER, _DECODER, HEAD),
    build_tower=QwenV1Tower,
    build_decoder=QwenV1Decoder,
    mrope_layout="single",
    chat=CHAT,
    # The published Int4 checkpoint is GPTQ; compressed-tensors holds what GPTQ has no place for.
    formats=("gptq", "compressed-tensors"),
    served=False,
    file_paths=(
        ("model.layers.{}", "h.{}"),
        ("visual.blocks.{}", "resblocks.{}"),
        ("visual.merger", "attn_pool"),
    ),
    # The code of the original is carried along and never run.
    side_files=(*SIDE_FILES, "*.tiktoken", "*.py"),
)
