"""LLaVA-1.5 (arXiv 2310.03744): a CLIP tower, a projector, and a decoder of Llama or Qwen2.

The decoder has rotary positions along one axis. Layers of the tower after the one whose output is
read stay in the checkpoint and never run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..clip_tower import CLIPTower
from ..config import ModelConfig
from ..processing.chat_format import ChatFormat
from ..text import TextModel
from . import steps
from .entries import BlockLinear, KeptLinear, NormBinding, PairBinding, Part
from .qwen2_stages import DECODER, HEAD
from .stage import Blocks, Stage
from .table import SIDE_FILES, Family

_LAYERS = "visual.encoder.layers.{}"

_VISION_LINEARS = (
    BlockLinear("self_attn.q_proj", "vision", "vision", bias=True, tap="qkv"),
    BlockLinear("self_attn.k_proj", "vision", "vision", bias=True, tap="qkv"),
    BlockLinear("self_attn.v_proj", "vision", "vision", bias=True, tap="qkv"),
    BlockLinear("self_attn.out_proj", "vision", "vision", bias=True, tap="o", input_split=True),
    BlockLinear("mlp.fc1", "vision", "vision_mlp", bias=True, tap="fc1"),
    BlockLinear("mlp.fc2", "vision_mlp", "vision", bias=True, tap="fc2", input_split=True),
)

_VISION = Stage(
    name="vision",
    part="tower",
    path=_LAYERS,
    count=lambda config: config.vision.depth,
    entry=("visual.embeddings", "visual.pre_layrnorm"),
    enter=steps.embed_patches,
    step=steps.run_tower_block,
    per_patch=True,
    linears=_VISION_LINEARS,
    norms=(
        NormBinding("layer_norm1", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        NormBinding("layer_norm2", ("mlp.fc1",)),
    ),
    # Not fc1 -> fc2: QuickGELU between them is not linear.
    pairs=(PairBinding("self_attn.v_proj", "self_attn.out_proj"),),
    fused=(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),),
)

_PROJECTOR = Stage(
    name="projector",
    part="tower",
    path="visual.multi_modal_projector",
    count=lambda config: 1,
    step=steps.merge_patches,
    leave=steps.select_features,
    linears=(
        BlockLinear("linear_1", "merged", "hidden", bias=True, tap="projector_in"),
        BlockLinear(
            "linear_2", "hidden", "hidden", bias=True, tap="projector_out", input_split=True
        ),
    ),
)

_NEVER_RUNS = "the decoder reads the output of an earlier layer of the tower, so it never runs"

_UNUSED = Blocks(
    name="unused vision",
    part="unused",
    path=_LAYERS,
    count=lambda config: config.vision.unused_layers,
    first=lambda config: config.vision.depth,
    linears=(),
    kept=tuple(
        KeptLinear(each.name, each.inputs, each.outputs, each.tap, _NEVER_RUNS, bias=each.bias)
        for each in _VISION_LINEARS
    ),
)


_LLAMA = replace(DECODER, linears=tuple(replace(each, bias=False) for each in DECODER.linears))


def _carried(config: ModelConfig) -> Mapping[str, Part]:
    """Return the starts of the names of tensors that the tower does not compute with."""
    vision = config.vision
    layers = range(vision.depth, vision.depth + vision.unused_layers)
    return {
        **{f"{_LAYERS.format(index)}.": "unused" for index in layers},
        "visual.post_layernorm.": "unused",
        "visual.embeddings.position_ids": "unused",  # a constant that older files hold
    }


VICUNA_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{{ 'USER: ' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ ' ASSISTANT: ' }}{%- endif -%}"
    "{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\\n' }}"
    "{%- endfor -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}"
    "{%- endfor -%}"
    "{%- if message['role'] == 'system' -%}{{ ' ' }}"
    "{%- elif message['role'] == 'assistant' -%}{{ eos_token }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ ' ASSISTANT:' }}{%- endif -%}"
)
"""The prompt of LLaVA-1.5 for checkpoints without a template: images come before the text."""

_IMAGES = ChatFormat(image="<image>", video=None, parts_only=True, leading_tokens=True)

LLAVA = Family(
    name="llava",
    stages=(_VISION, _PROJECTOR, _LLAMA, HEAD),
    build_tower=CLIPTower,
    build_decoder=TextModel,
    mrope_layout="single",
    tower_modules=("vision_tower", "multi_modal_projector"),
    side_files=(*SIDE_FILES, "tokenizer.model"),
    chat=replace(_IMAGES, end_of_turn="</s>", stops=("</s>",), default_template=VICUNA_TEMPLATE),
    carried=(_UNUSED,),
    carried_parts=_carried,
)

LLAVA_QWEN2 = replace(
    LLAVA, name="llava_qwen2", stages=(_VISION, _PROJECTOR, DECODER, HEAD), chat=_IMAGES
)
