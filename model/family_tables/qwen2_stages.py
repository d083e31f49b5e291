"""Stages and parts of stages that Qwen2-VL and Qwen2.5-VL share."""

from __future__ import annotations

from . import steps
from .entries import BlockLinear, NormBinding, PaddedWidth, PairBinding
from .stage import Checkpoints, Stage

VISION_ATTENTION = (
    BlockLinear("attn.qkv", "vision", "vision_qkv", bias=True, tap="qkv"),
    BlockLinear("attn.proj", "vision", "vision", bias=True, tap="o", input_split=True),
)
# v is the last third of the fused q/k/v projection.
VISION_VALUE = PairBinding("attn.qkv", "attn.proj", part=(2, 3))

MERGER = Stage(
    name="merger",
    part="tower",
    path="visual.merger",
    count=lambda config: 1,
    step=steps.merge_patches,
    leave=steps.select_features,
    linears=(
        BlockLinear("mlp.0", "merged", "merged", bias=True, tap="merger_in"),
        BlockLinear("mlp.2", "merged", "hidden", bias=True, tap="merger_out", input_split=True),
    ),
    # ln_q normalizes single patches; mlp.0 reads four of them concatenated.
    norms=(NormBinding("ln_q", ("mlp.0",), tiles=4),),
)

DECODER = Stage(
    name="decoder",
    part="decoder",
    path="model.layers.{}",
    count=lambda config: config.text.num_hidden_layers,
    entry=("model.embed_tokens",),
    enter=steps.embed_tokens,
    step=steps.run_decoder_layer,
    checkpoints=Checkpoints(("o", "gate_up", "down"), steps.complete_decoder_layer),
    cached=steps.keys_values,
    linears=(
        BlockLinear("self_attn.q_proj", "hidden", "q", bias=True, tap="qkv"),
        BlockLinear("self_attn.k_proj", "hidden", "kv", bias=True, tap="qkv"),
        BlockLinear("self_attn.v_proj", "hidden", "kv", bias=True, tap="qkv"),
        BlockLinear("self_attn.o_proj", "q", "hidden", bias=False, tap="o", input_split=True),
        BlockLinear("mlp.gate_proj", "hidden", "mlp", bias=False, tap="gate_up"),
        BlockLinear("mlp.up_proj", "hidden", "mlp", bias=False, tap="gate_up"),
        BlockLinear("mlp.down_proj", "mlp", "hidden", bias=False, tap="down", input_split=True),
    ),
    norms=(
        NormBinding(
            "input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        ),
        NormBinding("post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
    ),
    pairs=(
        # Attention mixes tokens, not channels, so a scale of a value channel passes through it.
        PairBinding("self_attn.v_proj", "self_attn.o_proj", grouped_heads=True),
        PairBinding("mlp.up_proj", "mlp.down_proj"),
    ),
    fused=(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        ("mlp.gate_proj", "mlp.up_proj"),
    ),
    padded=(
        PaddedWidth(
            "mlp",
            ("mlp.gate_proj", "mlp.up_proj"),
            ("mlp.down_proj",),
            ("", "intermediate_size"),
        ),
    ),
)

HEAD = Stage(
    name="head",
    part="head",
    path="lm_head",
    count=lambda config: 0 if config.text.tie_word_embeddings else 1,
    entry=("model.norm",),
    enter=steps.normalize,
    step=steps.predict,
    linears=(BlockLinear("", "hidden", "vocab", bias=False, tap="head"),),
)
