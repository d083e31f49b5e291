"""Small random models of both families, and checkpoint folders made of them.

`conftest.py` offers these functions as fixtures; tests import the types.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from vlpress.model.config import ModelConfig
from vlpress.model.loading import build_model
from vlpress.model.qwen_vl import QwenVL

FAMILIES = ("qwen2_vl", "qwen2_5_vl")

# 256 byte tokens come first, so these ids follow from their order.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
TOKEN_ID = {token: 256 + index for index, token in enumerate(SPECIAL_TOKENS)}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class TinyConfig(Protocol):
    """Signature of the `tiny_config` fixture."""

    def __call__(
        self,
        family: str = ...,
        *,
        tied: bool = ...,
        nested: bool = ...,
        dtype: str | None = ...,
        text: Mapping[str, Any] | None = ...,
        vision: Mapping[str, Any] | None = ...,
    ) -> ModelConfig: ...


class RandomModel(Protocol):
    """Signature of the `random_model` fixture."""

    def __call__(
        self,
        family: str = ...,
        *,
        config: ModelConfig | None = ...,
        seed: int = ...,
        dtype: torch.dtype = ...,
    ) -> QwenVL: ...


class WriteCheckpoint(Protocol):
    """Signature of the `write_checkpoint` fixture."""

    def __call__(
        self,
        folder: Path,
        model: QwenVL | None = ...,
        *,
        naming: str = ...,
        shards: int = ...,
        tokenizer: bool = ...,
        extra: Mapping[str, torch.Tensor] | None = ...,
    ) -> Path: ...


def make_tiny_config(
    family: str = "qwen2_5_vl",
    *,
    tied: bool = False,
    nested: bool = False,
    dtype: str | None = None,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """A small config in the hub's flat form, or nested as newer libraries write it."""
    rope: dict[str, Any] = {"mrope_section": [4, 6, 6]}
    text_raw: dict[str, Any] = {
        "vocab_size": 288,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": tied,
    }
    if nested:
        text_raw["rope_parameters"] = {**rope, "rope_type": "default", "rope_theta": 10000.0}
    else:
        text_raw |= {"rope_scaling": {**rope, "type": "mrope"}, "rope_theta": 10000.0}
    patches = {"patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2}
    if family == "qwen2_vl":
        vision_raw: dict[str, Any] = {
            "depth": 3,
            "embed_dim": 64,
            "hidden_size": 128,
            "mlp_ratio": 2,
            "num_heads": 4,
            **patches,
        }
    else:
        vision_raw = {
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 92,  # divisible by 4 but not by 8, as the published 3420
            "num_heads": 4,
            "out_hidden_size": 128,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
            **patches,
        }
    text_raw |= text or {}
    raw: dict[str, Any] = {
        "model_type": family,
        "vision_config": vision_raw | dict(vision or {}),
        "image_token_id": TOKEN_ID["<|image_pad|>"],
        "video_token_id": TOKEN_ID["<|video_pad|>"],
        "vision_start_token_id": TOKEN_ID["<|vision_start|>"],
        "vision_end_token_id": TOKEN_ID["<|vision_end|>"],
        "bos_token_id": TOKEN_ID["<|endoftext|>"],
        "eos_token_id": TOKEN_ID["<|im_end|>"],
    }
    if dtype is not None:
        raw["dtype" if nested else "torch_dtype"] = dtype
    raw |= {"text_config": text_raw, "tie_word_embeddings": tied} if nested else text_raw
    return ModelConfig.from_dict(raw)


def make_random_model(
    family: str = "qwen2_5_vl",
    *,
    config: ModelConfig | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> QwenVL:
    """A model on the CPU with every parameter random, biases and norms included."""
    model = build_model(config or make_tiny_config(family), device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * 1.2 / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.2 * noise + (1.0 if "norm" in name or "ln_q" in name else 0.0))
    return model.to(dtype).requires_grad_(False)


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer with Qwen's special tokens and a chat template of its form."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    preprocessor = {"min_pixels": 56 * 56, "max_pixels": 112 * 112, "patch_size": 14}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    generation = {"eos_token_id": [TOKEN_ID["<|im_end|>"], TOKEN_ID["<|endoftext|>"]]}
    (folder / "generation_config.json").write_text(json.dumps(generation))


def write_checkpoint_folder(
    folder: Path,
    model: QwenVL | None = None,
    *,
    naming: str = "hub",
    shards: int = 1,
    tokenizer: bool = True,
    extra: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write a checkpoint folder.

    Args:
        folder: Created if needed.
        model: What is written; a random one when None.
        naming: `hub` (`visual.*`, `model.layers.*`) or `new` (`model.visual.*`, ...).
        shards: 1 writes `model.safetensors`, more write an index.
        tokenizer: Whether the side files are written too.
        extra: Further tensors under their own names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model or make_random_model()
    (folder / "config.json").write_text(json.dumps(dict(model.config.raw)))
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    if naming == "new":
        tensors = {new_name(name): value for name, value in tensors.items()}
    tensors |= extra or {}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        weight_map: dict[str, str] = {}
        names = sorted(tensors)
        for shard in range(shards):
            file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
            part = {name: tensors[name] for name in names[shard::shards]}
            save_file(part, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if tokenizer:
        write_tokenizer(folder)
    return folder


def new_name(name: str) -> str:
    """A classic tensor name in the naming of newer libraries."""
    if name.startswith("visual."):
        return "model." + name
    if name.startswith("model."):
        return "model.language_model." + name.removeprefix("model.")
    return name
