"""Small random checkpoints of Qwen-VL of 2023, in the form of the published files."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from vlpress.model.config import ModelConfig
from vlpress.model.processing.inputs import Prompt, Visual
from vlpress.model.processing.qwen_v1_tokenizer import SPECIAL_TOKENS
from vlpress.model.rope import mrope_ids

MERGES = (b"th", b"the", b" th", b" the", b"in", b"ing", b"\xe4\xb8", b"\xe4\xb8\xad", b"..", b"  ")
TOKENS = [*(bytes([byte]) for byte in range(256)), *MERGES]
FIRST_SPECIAL = len(TOKENS)
SPECIAL = {token: FIRST_SPECIAL + index for index, token in enumerate(SPECIAL_TOKENS)}
IMG, PAD = SPECIAL["<img>"], SPECIAL["<imgpad>"]
SIDE = 112
"""Pixels of each side of an image: 8 x 8 patches, 4 x 4 queries."""

CONFIG: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "auto_map": {"AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel"},
    "model_type": "qwen",
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "kv_channels": 64,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "seq_length": 2048,
    "max_position_embeddings": 8192,
    "use_dynamic_ntk": True,
    "use_logn_attn": True,
    "no_bias": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "visual": {
        "heads": 4,
        "image_size": SIDE,
        "image_start_id": IMG,
        "layers": 2,
        "mlp_ratio": 2.5,
        "n_queries": 16,
        "output_dim": 256,
        "patch_size": 14,
        "width": 64,
    },
}


def random_tensors(config: Mapping[str, Any] = CONFIG, seed: int = 0) -> dict[str, Tensor]:
    """Make every tensor of a checkpoint random, by its name in the file."""
    generator = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Tensor:
        noise = torch.randn(rows, columns, generator=generator)
        return noise.mul_(gain * float(columns) ** -0.5)

    def vector(size: int, mean: float = 0.0) -> Tensor:
        return mean + 0.2 * torch.randn(size, generator=generator)

    text, visual = config["hidden_size"], config["visual"]
    inner, width, output = config["intermediate_size"] // 2, visual["width"], visual["output_dim"]
    tensors = {
        "transformer.wte.weight": torch.randn(config["vocab_size"], text, generator=generator),
        "lm_head.weight": matrix(config["vocab_size"], text, 1.5),
        "transformer.ln_f.weight": vector(text, 1.0),
    }
    for index in range(config["num_hidden_layers"]):
        at = f"transformer.h.{index}"
        tensors |= {
            f"{at}.ln_1.weight": vector(text, 1.0),
            f"{at}.attn.c_attn.weight": matrix(3 * text, text),
            f"{at}.attn.c_attn.bias": vector(3 * text),
            f"{at}.attn.c_proj.weight": matrix(text, text),
            f"{at}.ln_2.weight": vector(text, 1.0),
            f"{at}.mlp.w1.weight": matrix(inner, text),
            f"{at}.mlp.w2.weight": matrix(inner, text),
            f"{at}.mlp.c_proj.weight": matrix(text, inner),
        }
    at, patch, hidden = "transformer.visual", visual["patch_size"], int(width * visual["mlp_ratio"])
    tensors |= {
        f"{at}.conv1.weight": matrix(width, 3 * patch**2).view(width, 3, patch, patch),
        f"{at}.positional_embedding": torch.randn(256, width, generator=generator),
        f"{at}.attn_pool.query": torch.randn(visual["n_queries"], output, generator=generator),
        f"{at}.attn_pool.pos_embed": torch.randn(visual["n_queries"], output, generator=generator),
        f"{at}.attn_pool.kv_proj.weight": matrix(output, width),
        f"{at}.attn_pool.attn.in_proj_weight": matrix(3 * output, output),
        f"{at}.attn_pool.attn.in_proj_bias": vector(3 * output),
        f"{at}.attn_pool.attn.out_proj.weight": matrix(output, output),
        f"{at}.attn_pool.attn.out_proj.bias": vector(output),
        f"{at}.proj": matrix(output, output),
    }
    norms = dict.fromkeys(["ln_post", "attn_pool.ln_q", "attn_pool.ln_kv"], output)
    norms["ln_pre"] = width
    for index in range(visual["layers"]):
        block = f"transformer.resblocks.{index}"
        norms |= {f"{block}.ln_1": width, f"{block}.ln_2": width}
        layers = {
            "attn.in_proj": (3 * width, width),
            "attn.out_proj": (width, width),
            "mlp.c_fc": (hidden, width),
            "mlp.c_proj": (width, hidden),
        }
        for name, (rows, columns) in layers.items():
            tensors[f"{at}.{block}.{name}.weight"] = matrix(rows, columns)
            tensors[f"{at}.{block}.{name}.bias"] = vector(rows)
    for name, size in norms.items():
        tensors[f"{at}.{name}.weight"] = vector(size, 1.0)
        tensors[f"{at}.{name}.bias"] = vector(size)
    return tensors


def write_v1_checkpoint(
    folder: Path, config: Mapping[str, Any] = CONFIG, seed: int = 0
) -> dict[str, Tensor]:
    """Write a checkpoint folder; returns its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = random_tensors(config, seed)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(TOKENS)]
    (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 8192, "tokenizer_class": "QWenTokenizer"})
    )
    (folder / "generation_config.json").write_text(
        json.dumps({"chat_format": "chatml", "eos_token_id": SPECIAL["<|endoftext|>"]})
    )
    # Code of the original, which must never be imported.
    (folder / "modeling_qwen.py").write_text("raise RuntimeError('this file was run')\n")
    return tensors


def v1_config(**changes: Any) -> ModelConfig:
    """Make the config of a small model; `changes` replace entries of config.json."""
    return ModelConfig.from_dict(CONFIG | changes)


def pixels(seed: int) -> Tensor:
    """Make normalized pixels of an image, `[3, SIDE, SIDE]`."""
    return torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def visual_of(image: Tensor) -> Visual:
    """Cut an image into patches in merge order, as the processor does."""
    tiles = image.reshape(3, 4, 2, 14, 4, 2, 14).permute(1, 4, 2, 5, 0, 3, 6)
    return Visual("image", tiles.reshape(64, -1), (1, 8, 8), 0.0, f"image {float(image.sum())}")


def v1_prompt(images: int, words: int, config: ModelConfig, answer: int = 0) -> Prompt:
    """Make a prompt of random tokens and of the images `pixels(0)`, `pixels(1)`, ..."""
    generator = torch.Generator().manual_seed(words)
    ids: list[int] = torch.randint(256, (3,), generator=generator).tolist()
    for _ in range(images):
        ids += [IMG, *[PAD] * 16, IMG + 1]
    ids += torch.randint(256, (words,), generator=generator).tolist()
    visuals = tuple(visual_of(pixels(seed)) for seed in range(images))
    grids = [visual.grid for visual in visuals]
    positions = mrope_ids(torch.tensor(ids), grids, [0.0] * images, config, answer)
    return Prompt(torch.tensor(ids), positions, visuals, answer)
