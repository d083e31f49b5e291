"""Small random models of all families, their checkpoints and prompts.

There are two sizes. `TINY` has the vocabulary of a byte-level tokenizer, for tests with texts.
`SMALL` is as small as the quantization formats allow, for tests that calibrate and solve.
`conftest.py` offers some of these functions as fixtures; tests import the types.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from vlpress.model.config import ModelConfig
from vlpress.model.loading import build_model
from vlpress.model.processing.inputs import Prompt, Visual
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.rope import mrope_ids

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
SLOW_FAMILIES = ("qwen3_vl_moe", "qwen3_5_moe")
EACH_FAMILY = tuple(
    pytest.param(family, marks=pytest.mark.slow) if family in SLOW_FAMILIES else family
    for family in FAMILIES
)
"""Parameters of the many tests that all families pass alike: what the slow ones have, others have
too, or tests of their own cover."""
NESTED_ONLY = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
"""Families whose published files have a `text_config` and the newer tensor names."""
DENSE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")
"""Families without experts."""
ARCHITECTURES = {
    "qwen2_vl": "Qwen2VLForConditionalGeneration",
    "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
    "qwen3_vl": "Qwen3VLForConditionalGeneration",
    "qwen3_vl_moe": "Qwen3VLMoeForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
}

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

_PROMPT = "{{ '<|im_start|>assistant\\n' }}"
THINKING_TEMPLATE = CHAT_TEMPLATE.replace(_PROMPT, _PROMPT + "{{ '<think>\\n' }}")
"""Opens the reasoning in the prompt of an answer, as that of Qwen3-VL Thinking."""


@dataclass(frozen=True)
class Size:
    """Sizes of a model, as entries of its config.json, and the scale of its random weights."""

    text: Mapping[str, Any]
    qwen3_text: Mapping[str, Any]
    """Replaces entries of `text` for Qwen3-VL."""
    moe_text: Mapping[str, Any]
    """Further entries with a mixture of experts. The tensors of experts are not square in either
    orientation: transformers takes a tensor for transposed by its shape."""
    qwen3_5_text: Mapping[str, Any]
    """Further entries for Qwen3.5."""
    mrope_section: tuple[int, int, int]
    qwen3_mrope_section: tuple[int, int, int]
    vision: Mapping[str, Mapping[str, Any]]
    """By family; with a mixture of experts as without, and Qwen3.5 as Qwen3-VL."""
    token_ids: Mapping[str, int]
    gain: float
    """Standard deviation of matrices, times the root of their inputs."""
    embedding_gain: float
    norm_bias: float
    """Mean of the biases of norms."""


PATCHES_16 = {"patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2}
PATCHES = {"patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2}

TINY = Size(
    text={
        "vocab_size": 288,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 4096,
    },
    # heads x head_dim is not hidden_size.
    qwen3_text={"num_hidden_layers": 4, "head_dim": 64},
    moe_text={"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
    # Layers of both types, more than one value head per key head, heads partly rotated.
    qwen3_5_text={
        "num_hidden_layers": 4,
        "full_attention_interval": 2,
        "partial_rotary_factor": 0.5,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
    },
    mrope_section=(4, 6, 6),
    qwen3_mrope_section=(12, 10, 10),
    vision={
        "qwen2_vl": {
            "depth": 3,
            "embed_dim": 64,
            "hidden_size": 128,
            "mlp_ratio": 2,
            "num_heads": 4,
            **PATCHES,
        },
        "qwen2_5_vl": {
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 92,  # divisible by 4 but not by 8, as the published 3420
            "num_heads": 4,
            "out_hidden_size": 128,
            "window_size": 112,
            "fullatt_block_indexes": [1, 3],
            "tokens_per_second": 2,
            **PATCHES,
        },
        "qwen3_vl": {
            "depth": 4,
            "hidden_size": 64,
            "intermediate_size": 80,  # divisible by 16 but not by 32, as the published 4304
            "num_heads": 4,
            "out_hidden_size": 128,
            "num_position_embeddings": 49,
            "deepstack_visual_indexes": [0, 2],
            **PATCHES_16,
        },
    },
    token_ids={
        "image_token_id": TOKEN_ID["<|image_pad|>"],
        "video_token_id": TOKEN_ID["<|video_pad|>"],
        "vision_start_token_id": TOKEN_ID["<|vision_start|>"],
        "vision_end_token_id": TOKEN_ID["<|vision_end|>"],
        "bos_token_id": TOKEN_ID["<|endoftext|>"],
        "eos_token_id": TOKEN_ID["<|im_end|>"],
    },
    gain=1.2,
    embedding_gain=1.0,
    norm_bias=1.0,
)

SMALL = Size(
    text={
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
    },
    qwen3_text={"num_hidden_layers": 3, "head_dim": 32},
    moe_text={"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 96},
    qwen3_5_text={
        "full_attention_interval": 2,
        "partial_rotary_factor": 0.5,
        "linear_key_head_dim": 16,
        "linear_value_head_dim": 32,
        "linear_num_key_heads": 1,
        "linear_num_value_heads": 2,
    },
    mrope_section=(2, 3, 3),
    qwen3_mrope_section=(6, 5, 5),
    vision={
        "qwen2_vl": {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 64,
            "in_chans": 3,
            "mlp_ratio": 4,
            "num_heads": 2,
            **PATCHES,
        },
        "qwen2_5_vl": {
            "depth": 2,
            "hidden_size": 32,
            "in_chans": 3,
            "intermediate_size": 36,  # divisible by 4 only, as the published 3420
            "num_heads": 2,
            "out_hidden_size": 64,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "tokens_per_second": 2,
            **PATCHES,
        },
        "qwen3_vl": {
            "depth": 3,
            "hidden_size": 32,
            "in_channels": 3,
            "intermediate_size": 48,  # divisible by 16 only, as the published 4304
            "num_heads": 2,
            "out_hidden_size": 64,
            "num_position_embeddings": 9,
            "deepstack_visual_indexes": [0, 1],
            **PATCHES_16,
        },
    },
    token_ids={
        "image_token_id": 90,
        "video_token_id": 91,
        "vision_start_token_id": 92,
        "vision_end_token_id": 93,
    },
    gain=1.0,
    embedding_gain=8.0,
    norm_bias=0.0,
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


def raw_config(
    family: str,
    size: Size,
    *,
    tied: bool,
    nested: bool = False,
    dtype: str | None = None,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a config.json in the hub's form, or nested as newer libraries write it."""
    if family in NESTED_ONLY:
        return _nested_config(
            family, size, tied=tied, newer=nested, dtype=dtype, text=text, vision=vision
        )
    rope: dict[str, Any] = {"mrope_section": list(size.mrope_section)}
    text_raw: dict[str, Any] = {**size.text, "tie_word_embeddings": tied}
    if nested:
        text_raw["rope_parameters"] = {**rope, "rope_type": "default", "rope_theta": 10000.0}
    else:
        text_raw |= {"rope_scaling": {**rope, "type": "mrope"}, "rope_theta": 10000.0}
    text_raw |= text or {}
    raw: dict[str, Any] = {
        "model_type": family,
        "vision_config": {**size.vision[family], **(vision or {})},
        **size.token_ids,
    }
    if dtype is not None:
        raw["dtype" if nested else "torch_dtype"] = dtype
    raw |= {"text_config": text_raw, "tie_word_embeddings": tied} if nested else text_raw
    return raw


def _nested_config(
    family: str,
    size: Size,
    *,
    tied: bool,
    newer: bool,
    dtype: str | None,
    text: Mapping[str, Any] | None,
    vision: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return a config.json of Qwen3-VL as published, or as transformers 5 writes it."""
    rope: dict[str, Any] = {"rope_type": "default", "mrope_interleaved": True}
    rope |= {"mrope_section": list(size.qwen3_mrope_section)}
    theta = {"rope_theta": 10000.0}
    # The flag of text_config is a default of transformers that does not apply.
    text_raw: dict[str, Any] = {**size.text, **size.qwen3_text, "model_type": f"{family}_text"}
    if family.endswith("_moe"):
        text_raw |= {**size.moe_text, "norm_topk_prob": True, "mlp_only_layers": []}
        if newer and family == "qwen3_vl_moe":
            text_raw["num_local_experts"] = text_raw.pop("num_experts")
    if family.startswith("qwen3_5"):
        text_raw |= size.qwen3_5_text
        rope["partial_rotary_factor"] = text_raw.pop("partial_rotary_factor")
        half = sum(size.qwen3_mrope_section) // 2
        rope["mrope_section"] = [half - 2 * (half // 3), half // 3, half // 3]
        if "moe_intermediate_size" in text_raw:
            text_raw["shared_expert_intermediate_size"] = 64
    text_raw |= {"tie_word_embeddings": not tied, "attention_bias": False}
    text_raw |= {"rope_parameters": {**rope, **theta}} if newer else {"rope_scaling": rope, **theta}
    if dtype is not None:
        text_raw["dtype"] = dtype
    vision_type = f"{family}_vision" if newer else family
    vision_sizes = dict(size.vision["qwen3_vl"])
    if family.startswith("qwen3_5"):
        del vision_sizes["deepstack_visual_indexes"]
    return {
        "model_type": family,
        "architectures": [ARCHITECTURES[family]],
        "text_config": text_raw | dict(text or {}),
        "vision_config": {"model_type": vision_type, **vision_sizes, **(vision or {})},
        "tie_word_embeddings": tied,
        **size.token_ids,
    }


def make_tiny_config(
    family: str = "qwen2_5_vl",
    *,
    tied: bool = False,
    nested: bool = False,
    dtype: str | None = None,
    text: Mapping[str, Any] | None = None,
    vision: Mapping[str, Any] | None = None,
) -> ModelConfig:
    """Make the config of a `TINY` model."""
    raw = raw_config(family, TINY, tied=tied, nested=nested, dtype=dtype, text=text, vision=vision)
    return ModelConfig.from_dict(raw)


def small_config(family: str = "qwen2_5_vl", *, tied: bool = True, **text: Any) -> dict[str, Any]:
    """Make the config.json of a `SMALL` model; `text` replaces its entries."""
    raw = raw_config(family, SMALL, tied=tied, dtype="float32", text=text)
    return {"architectures": [ARCHITECTURES[family]], **raw}


def make_random_model(
    family: str = "qwen2_5_vl",
    *,
    config: ModelConfig | None = None,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    size: Size = TINY,
) -> QwenVL:
    """Make a model on the CPU with every parameter random, biases and norms included."""
    config = config or make_tiny_config(family)
    model = _random_model(config, seed, size.gain, size.embedding_gain, size.norm_bias)
    model = copy.deepcopy(model, {id(model.config): config})
    return model.to(dtype).requires_grad_(False)


@lru_cache(maxsize=16)
def _random_model(
    config: ModelConfig, seed: int, gain: float, embedding_gain: float, norm_bias: float
) -> QwenVL:
    """See `make_random_model`; the model is for copies."""
    model = build_model(config, device="cpu", dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                experts = model.config.text.experts
                input_major = experts is not None and experts.input_major
                stored = parameter[0]
                if ".experts." in name:
                    stored = stored[:, 0] if input_major else stored[0]
                parameter.copy_(noise * gain / stored.numel() ** 0.5)
            elif "norm" in name or "ln_q" in name:
                parameter.copy_(0.2 * noise + (1 if name.endswith("weight") else norm_bias))
            else:
                parameter.copy_(0.2 * noise)
        model.model.embed_tokens.weight.mul_(embedding_gain)
    return model


def small_model(
    raw: dict[str, Any] | None = None, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> QwenVL:
    """Make a random model of a config.json, by default `small_config()`."""
    config = ModelConfig.from_dict(raw or small_config())
    return make_random_model(config=config, seed=seed, dtype=dtype, size=SMALL)


def visual(
    grid: tuple[int, int, int],
    seed: int,
    kind: Literal["image", "video"] = "image",
    patch_dim: int = 3 * 2 * 14 * 14,
) -> Visual:
    """Make random patches of one image or video."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(grid[0] * grid[1] * grid[2], patch_dim, generator=generator)
    return Visual(kind, patches, grid, 1.0 if kind == "video" else 0.0, f"digest-{grid}-{seed}")


def prompt(config: ModelConfig, grids: list[tuple[int, int, int]], words: int, seed: int) -> Prompt:
    """Make a prompt of random tokens and visuals; a grid of several frames is a video."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = torch.randint(90, (3,), generator=generator).tolist()
    visuals = []
    for index, grid in enumerate(grids):
        kind: Literal["image", "video"] = "video" if grid[0] > 1 else "image"
        visuals.append(visual(grid, seed * 100 + index, kind, config.vision.patch_dim))
        runs = grid[0] if config.vision.separate_frames else 1
        tokens = grid[0] * grid[1] * grid[2] // 4 // runs
        pad = config.video_token_id if grid[0] > 1 else config.image_token_id
        start, end = config.vision_start_token_id, config.vision_end_token_id
        assert start is not None and end is not None and pad is not None
        ids += [start, *[pad] * tokens, end] * runs
    ids += torch.randint(90, (words,), generator=generator).tolist()
    input_ids = torch.tensor(ids)
    seconds = [v.seconds_per_grid for v in visuals]
    return Prompt(input_ids, mrope_ids(input_ids, grids, seconds, config), tuple(visuals))


def prompts(config: ModelConfig) -> list[Prompt]:
    """Make four prompts: text, one image, three images of different sizes, a video."""
    return [
        prompt(config, [], 20, 1),
        prompt(config, [(1, 4, 4)], 12, 2),
        prompt(config, [(1, 4, 6), (1, 2, 2), (1, 8, 4)], 9, 3),
        prompt(config, [(3, 4, 4)], 7, 4),
    ]


@lru_cache(maxsize=1)
def _default_model() -> QwenVL:
    return make_random_model()


def write_tokenizer(folder: Path, patch_size: int = 14) -> None:
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
    bounds = {"min_pixels": (4 * patch_size) ** 2, "max_pixels": (8 * patch_size) ** 2}
    preprocessor: dict[str, Any] = {**bounds, "patch_size": patch_size}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    if patch_size == 16:
        size = {"shortest_edge": 4096, "longest_edge": 65536}
        videos = {"size": size, "patch_size": patch_size}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(videos))
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
        folder: created if missing.
        model: its model; default a random one.
        naming: `hub` (the published names) or `new` (`model.visual.*`, ...); for `NESTED_ONLY` both
            are the same.
        shards: 1 writes `model.safetensors`, more write an index.
        tokenizer: whether the tokenizer and other side files are written too.
        extra: further tensors under their own names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model or _default_model()
    (folder / "config.json").write_text(json.dumps(dict(model.config.raw)))
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    if naming == "new" or model.config.family in NESTED_ONLY:
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
        write_tokenizer(folder, model.config.vision.patch_size)
    return folder


def write_small_checkpoint(
    folder: Path,
    model: QwenVL,
    *,
    nested: bool = False,
    shards: int = 1,
    side_files: bool = True,
) -> Path:
    """Write a checkpoint with side files whose bytes no library would reproduce."""
    naming = "new" if nested else "hub"
    write_checkpoint_folder(folder, model, naming=naming, shards=shards, tokenizer=False)
    if side_files:
        (folder / "tokenizer_config.json").write_bytes(b'{ "odd" :\t"spacing"}\r\n')
        (folder / "preprocessor_config.json").write_bytes(b'{"min_pixels":3136}')
        (folder / "chat_template.jinja").write_bytes("{{ '中' }}".encode())
        (folder / "README.md").write_text("not a side file")
    return folder


def new_name(name: str) -> str:
    """A classic tensor name in the naming of newer libraries."""
    if name.startswith("visual."):
        return "model." + name
    if name.startswith("model."):
        return "model.language_model." + name.removeprefix("model.")
    return name
