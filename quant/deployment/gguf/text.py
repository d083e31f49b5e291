"""The text model of a GGUF file: its architecture, keys and tensors.

Keys and names follow llama.cpp's `src/llama-arch.cpp` and the loaders in its `src/models/`.
Positions of queries and keys are paired as in the checkpoint, so no rows are permuted, with one
exception: llama.cpp repeats the key heads of linear attention as a whole, [0, 1, 0, 1], where the
checkpoint repeats each of them, [0, 0, 1, 1]. Value heads are written in the order that this needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....model.config import ModelConfig
from ....model.sizes import LinearAttentionSizes
from ..source import ExportSource
from .naming import Naming, Rewrite, list_tensors
from .tensors import Change, FileTensor, FloatType

ARCHITECTURES = {
    "qwen2_vl": "qwen2vl",
    "qwen2_5_vl": "qwen2vl",
    "qwen3_vl": "qwen3vl",
    "qwen3_vl_moe": "qwen3vlmoe",
    "qwen3_5": "qwen35",
    "qwen3_5_moe": "qwen35moe",
}
"""Architecture of llama.cpp by family."""

_INSIDE = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
_INSIDE_QWEN35 = {
    **_INSIDE,
    "post_attention_layernorm": "post_attention_norm",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
_OFFSET_NORMS = ("attn_norm", "post_attention_norm", "attn_q_norm", "attn_k_norm", "output_norm")
"""Norms that a family with `norm_offset` stores without the offset; llama.cpp expects it added."""


def naming(config: ModelConfig) -> Naming:
    """Return the names of the text model's tensors."""
    is_hybrid = config.text.linear_attention is not None
    return Naming(
        parts=("embedding", "decoder", "head"),
        prefixes=("model", "lm_head"),
        modules={
            "model.embed_tokens": "token_embd",
            "model.norm": "output_norm",
            "lm_head": "output",
        },
        blocks={"model.layers": "blk"},
        inside=_INSIDE_QWEN35 if is_hybrid else _INSIDE,
        parameters={"linear_attn.A_log": "ssm_a", "linear_attn.dt_bias": "ssm_dt.bias"},
    )


def text_tensors(source: ExportSource, float_type: FloatType | None) -> list[FileTensor]:
    """List the tensors of the text model; see `list_tensors`."""
    text = source.config.text
    changes: dict[str, Change] = {"ffn_gate_inp_shexp.weight": lambda weight: weight.flatten()}
    if offset := text.norm_offset:
        changes |= {f"{name}.weight": lambda weight: weight + offset for name in _OFFSET_NORMS}
    rewrites: Mapping[str, Rewrite] = {}
    if (sizes := text.linear_attention) is not None:
        changes["ssm_a"] = lambda logarithm: -logarithm.exp()
        changes["ssm_conv1d.weight"] = lambda weight: weight.squeeze(1)
        rewrites = _value_head_order(sizes)
    return list_tensors(source, naming(source.config), float_type, rewrites, changes)


def _value_head_order(sizes: LinearAttentionSizes) -> dict[str, Rewrite]:
    """Return rewrites that put value heads in llama.cpp's order, by name in a block."""
    heads, values = value_heads(sizes), value_channels(sizes)
    keys = np.arange(2 * sizes.key_width)
    qkv = np.concatenate([keys, 2 * sizes.key_width + values])
    rows = {
        "attn_qkv.weight": qkv,
        "ssm_conv1d.weight": qkv,
        "attn_gate.weight": values,
        "ssm_beta.weight": heads,
        "ssm_alpha.weight": heads,
        "ssm_a": heads,
        "ssm_dt.bias": heads,
    }

    def of_rows(order: NDArray[np.int64]) -> Rewrite:
        return lambda tensor: [tensor.with_rows(tensor.name, order)]

    return {
        **{name: of_rows(order) for name, order in rows.items()},
        "ssm_out.weight": lambda tensor: [tensor.with_columns(values)],
    }


def value_heads(sizes: LinearAttentionSizes) -> NDArray[np.int64]:
    """Return the number in the checkpoint of every value head of llama.cpp."""
    return np.arange(sizes.value_heads).reshape(sizes.key_heads, -1).T.ravel()


def value_channels(sizes: LinearAttentionSizes) -> NDArray[np.int64]:
    """Return the number in the checkpoint of every value channel of llama.cpp."""
    width = sizes.value_head_dim
    return (value_heads(sizes)[:, None] * width + np.arange(width)).ravel()


def text_keys(config: ModelConfig) -> dict[str, Any]:
    """Return the keys of the text model, by their full names."""
    text = config.text
    keys: dict[str, Any] = {
        "vocab_size": text.vocab_size,
        "context_length": text.max_position_embeddings,
        "embedding_length": text.hidden_size,
        "block_count": text.num_hidden_layers,
        "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": text.num_key_value_heads,
        "attention.key_length": text.head_dim,
        "attention.value_length": text.head_dim,
        "attention.layer_norm_rms_epsilon": text.rms_norm_eps,
        "rope.dimension_count": text.rotary_dim,
        "rope.freq_base": text.rope_theta,
        "rope.dimension_sections": [*text.mrope_section, 0],
    }
    architecture = ARCHITECTURES[config.family]
    if architecture.startswith("qwen3vl"):
        keys["n_deepstack_layers"] = len(config.vision.deepstack_visual_indexes)
    if (experts := text.experts) is not None:
        keys["expert_count"] = experts.count
        keys["expert_used_count"] = experts.active
        keys["expert_feed_forward_length"] = experts.intermediate_size
        if experts.shared_intermediate_size:
            keys["expert_shared_feed_forward_length"] = experts.shared_intermediate_size
    if (linear := text.linear_attention) is not None:
        keys |= {
            "ssm.conv_kernel": linear.conv_kernel,
            "ssm.state_size": linear.key_head_dim,
            "ssm.group_count": linear.key_heads,
            "ssm.time_step_rank": linear.value_heads,
            "ssm.inner_size": linear.value_width,
            "full_attention_interval": full_attention_interval(config),
        }
    return {f"{architecture}.{name}": value for name, value in keys.items()}


def full_attention_interval(config: ModelConfig) -> int:
    """Return n if every n-th layer, and no other, has full attention.

    Raises:
        ValueError: the layers are not spaced equally.
    """
    full = config.text.cached_layers
    every = full[0] + 1 if full else config.text.num_hidden_layers + 1
    if full != tuple(range(every - 1, config.text.num_hidden_layers, every)):
        raise ValueError(
            f"layers {', '.join(map(str, full))} have full attention; llama.cpp needs every n-th "
            "layer of the model to have it"
        )
    return every
