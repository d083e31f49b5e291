"""Small random LLaVA checkpoints, in the names of published files and of newer libraries."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny_models import CHAT_TEMPLATE, SPECIAL_TOKENS
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor

from vlpress.model.processing.inputs import Prompt

IMAGE = "<image>"
SIDE, PATCH = 56, 14
TOKENS = (SIDE // PATCH) ** 2
PUBLISHED = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
NEWER = {"model.vision_tower.": "model.vision_tower.vision_model."}
NAMINGS = {"published": PUBLISHED, "newer": NEWER, "newest": {}}
"""From the names of modules in transformers 5 to those of files."""
FAMILIES = {"llama": "llava", "qwen2": "llava_qwen2"}
"""Family by `model_type` of the decoder."""


def llava_config(text: str = "llama", *, tied: bool = False, **changes: Any) -> dict[str, Any]:
    """Make a config.json; the sizes are such that no two widths are equal by accident.

    Args:
        text: `model_type` of the decoder.
        tied: whether the head is tied.
        changes: entries of the file; those of `text_config` and `vision_config` are added.
    """
    raw: dict[str, Any] = {
        "model_type": "llava",
        "architectures": ["LlavaForConditionalGeneration"],
        "image_token_index": 258 if text == "qwen2" else 355,
        "text_config": {
            "model_type": text,
            "vocab_size": 384,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 2048,
        },
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": SIDE,
            "patch_size": PATCH,
            "projection_dim": 32,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": tied,
    }
    for key, value in changes.items():
        is_section = isinstance(raw.get(key), dict) and isinstance(value, dict)
        raw[key] = {**raw[key], **value} if is_section else value
    return raw


def random_tensors(raw: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Make all tensors of a checkpoint, layers that never run included, with random values."""
    text, vision = raw["text_config"], raw["vision_config"]
    width, heads = text["hidden_size"], text["num_attention_heads"]
    kv, inner = width // heads * text["num_key_value_heads"], text["intermediate_size"]
    c, positions = vision["hidden_size"], (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "model.vision_tower.embeddings.class_embedding": (c,),
        "model.vision_tower.embeddings.patch_embedding.weight": (
            *(c, 3),
            *(vision["patch_size"],) * 2,
        ),
        "model.vision_tower.embeddings.position_embedding.weight": (positions, c),
        "model.language_model.embed_tokens.weight": (text["vocab_size"], width),
        "model.language_model.norm.weight": (width,),
    }
    linears = {
        "model.multi_modal_projector.linear_1": (width, c),
        "model.multi_modal_projector.linear_2": (width, width),
    }
    norms = ["model.vision_tower.pre_layrnorm", "model.vision_tower.post_layernorm"]
    for index in range(vision["num_hidden_layers"]):
        layer = f"model.vision_tower.encoder.layers.{index}"
        norms += [f"{layer}.layer_norm1", f"{layer}.layer_norm2"]
        linears |= {f"{layer}.self_attn.{x}_proj": (c, c) for x in ("q", "k", "v", "out")}
        linears[f"{layer}.mlp.fc1"] = (vision["intermediate_size"], c)
        linears[f"{layer}.mlp.fc2"] = (c, vision["intermediate_size"])
    shapes |= {f"{name}.weight": shape for name, shape in linears.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linears.items()}
    shapes |= {f"{name}.{part}": (c,) for name in norms for part in ("weight", "bias")}
    for index in range(text["num_hidden_layers"]):
        layer = f"model.language_model.layers.{index}"
        shapes |= {f"{layer}.{x}_layernorm.weight": (width,) for x in ("input", "post_attention")}
        for name, rows in {"q": width, "k": kv, "v": kv, "o": width}.items():
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, width)
            if text["model_type"] == "qwen2" and name != "o":
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
        shapes |= {f"{layer}.mlp.{x}_proj.weight": (inner, width) for x in ("gate", "up")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (width, inner)
    if not raw["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (text["vocab_size"], width)
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, shape, generator) for name, shape in shapes.items()}


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return noise * (1.2 / math.sqrt(noise[0].numel()))
    is_scale = "norm" in name and name.endswith("weight")
    return 0.2 * noise + (1 if is_scale else 0)


def renamed(tensors: Mapping[str, Tensor], naming: str) -> dict[str, Tensor]:
    """Return tensors under the names of files."""
    names = {}
    for name in tensors:
        hits = [(old, new) for old, new in NAMINGS[naming].items() if name.startswith(old)]
        names[name] = hits[0][1] + name.removeprefix(hits[0][0]) if hits else name
    return {names[name]: tensor.contiguous() for name, tensor in tensors.items()}


def write_llava(
    folder: Path,
    raw: Mapping[str, Any] | None = None,
    *,
    naming: str = "published",
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    silent: tuple[int, ...] = (),
) -> Path:
    """Write a checkpoint folder with a tokenizer; `silent` are tokens that are never generated."""
    raw = raw or llava_config()
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(raw, seed)
    for token in silent:  # with weight 0, the logit of another one is always larger
        tensors["lm_head.weight"][token] = 0
    stored = {name: tensor.to(dtype) for name, tensor in renamed(tensors, naming).items()}
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(raw))
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE},
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    if raw["text_config"]["model_type"] == "qwen2":
        _write_qwen2_tokenizer(folder)
    else:
        write_llama_tokenizer(folder)
    return folder


def pixels(prompt: Prompt) -> Tensor:
    """Return the images of a prompt `[images, 3, height, width]`, made of their patches."""
    rows = SIDE // PATCH
    patches = torch.stack([each.patches for each in prompt.visuals])
    cells = patches.reshape(len(patches), rows, rows, 3, PATCH, PATCH)
    return cells.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def write_llama_tokenizer(folder: Path) -> None:
    """Write a tokenizer of Llama's form: spaces are a letter, and texts start with `<s>`."""
    letters = ["▁", *(chr(code) for code in range(33, 127))]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", "<pad>", IMAGE]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))


def _write_qwen2_tokenizer(folder: Path) -> None:
    """Write a byte-level tokenizer with a template of lists of parts, as that of Qwen2."""
    from tokenizers import pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", IMAGE, "<|im_end|>"]
    assert set(special[:2]) < set(SPECIAL_TOKENS)
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", IMAGE)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
