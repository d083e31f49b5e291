"""Write a checkpoint of random weights with the widths of a published model.

    python benchmarks/make_model.py OUT --size 3b [--family qwen2_5] [--layers N]

For measurements of speed and memory without the real weights. Files, tensor names and config match
the hub's; the tokenizer and its token ids are the built-in model's. Weights are normal with the
config's standard deviation; norms are one. Only one tensor is in memory at a time.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from common import qwen3_configs, qwen35_configs
from safetensors.torch import save_file
from torch import Tensor

from vlpress.model.config import ModelConfig
from vlpress.model.families import SIDE_FILES
from vlpress.model.loading import build_model, resolve_model

# hidden, inner, layers, heads, key-value heads, vocabulary, tied head: from the config files on the
# hub, of Qwen2.5-VL (3b, 7b, 32b, 72b) and Qwen2-VL (2b, 7b, 72b); 135m has the decoder of
# SmolLM2-135M.
TEXT = {
    "135m": (576, 1536, 30, 9, 3, 49152, True),
    "2b": (1536, 8960, 28, 12, 2, 151936, True),
    "3b": (2048, 11008, 36, 16, 2, 151936, True),
    "7b": (3584, 18944, 28, 28, 4, 152064, False),
    "32b": (5120, 27648, 64, 40, 8, 152064, False),
    "72b": (8192, 29568, 80, 64, 8, 152064, False),
}
SIZES = {
    "qwen2": ("2b", "7b", "72b"),
    "qwen2_5": ("135m", "3b", "7b", "32b", "72b"),
    "qwen3": tuple(qwen3_configs.SIZES),
    "qwen3_5": tuple(qwen35_configs.SIZES),
}
NESTED = {"qwen3": qwen3_configs.config_of, "qwen3_5": qwen35_configs.config_of}
"""Functions that build config.json, by family."""
ROPE = (16, 24, 24)
"""Rotary pairs of a head of 128 channels that turn with time, height and width."""
VISION_DEPTH = 32
DEVIATION = 0.02
SHARD_BYTES = 2 * 2**30


def main() -> None:
    """Write the folder."""
    options = parse()
    if options.out.exists():
        sys.exit(f"{options.out} exists; give another folder")
    raw = (
        small_vocabulary(NESTED[options.family](options.size, options.layers))
        if options.family in NESTED
        else config_of(options.family, options.size, options.layers, options.vision_layers)
    )
    options.out.mkdir(parents=True)
    size = write(raw, options.out, options.seed)
    print(f"{options.out}: {size / 1e9:.1f} GB")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("--family", choices=list(SIZES), default="qwen2_5")
    sizes = dict.fromkeys(size for of in SIZES.values() for size in of)
    parser.add_argument("--size", choices=list(sizes), required=True)
    parser.add_argument("--layers", type=int, help="of the decoder (default all)")
    parser.add_argument("--vision-layers", type=int, help="of the vision tower (default all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.size not in SIZES[options.family]:
        parser.error(f"{options.family} comes in {', '.join(SIZES[options.family])}")
    if options.family in NESTED and options.vision_layers is not None:
        parser.error("--vision-layers: the towers of this family are written whole")
    return options


def small_vocabulary(raw: dict[str, Any]) -> dict[str, Any]:
    """Give a nested config the token ids of the built-in tokenizer."""
    tiny = json.loads((resolve_model("tiny") / "config.json").read_text())
    return raw | {key: value for key, value in tiny.items() if key.endswith("_token_id")}


def config_of(
    family: str, size: str, layers: int | None = None, vision_layers: int | None = None
) -> dict[str, Any]:
    """Build the content of config.json.

    Args:
        family: qwen2 or qwen2_5.
        size: a key of `SIZES`.
        layers: number of decoder layers; None for all.
        vision_layers: number of layers of the vision tower; None for all.
    """
    hidden, inner, depth, heads, kv_heads, vocabulary, tied = TEXT[size]
    tiny = json.loads((resolve_model("tiny") / "config.json").read_text())
    vision: dict[str, Any] = {
        "depth": VISION_DEPTH if vision_layers is None else vision_layers,
        "num_heads": 16,
        "in_chans": 3,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if family == "qwen2":
        vision |= {"embed_dim": 1280, "hidden_size": hidden, "mlp_ratio": 4}
    else:
        vision |= {
            "hidden_size": 1280,
            "intermediate_size": 3456 if size in ("32b", "72b") else 3420,
            "out_hidden_size": hidden,
            "hidden_act": "silu",
            "window_size": 112,
            "fullatt_block_indexes": [i for i in (7, 15, 23, 31) if i < vision["depth"]],
            "tokens_per_second": 2,
        }
    vl = "Qwen2VL" if family == "qwen2" else "Qwen2_5_VL"
    return {
        "architectures": [f"{vl}ForConditionalGeneration"],
        "model_type": f"{family}_vl",
        **{key: value for key, value in tiny.items() if key.endswith("_token_id")},
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": DEVIATION,
        "intermediate_size": inner,
        "max_position_embeddings": 32768,
        "num_attention_heads": heads,
        "num_hidden_layers": depth if layers is None else layers,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rope_scaling": {
            "type": "mrope",
            "mrope_section": [hidden // heads * n // 128 for n in ROPE],
        },
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vocab_size": vocabulary,
        "vision_config": vision,
    }


def write(raw: dict[str, Any], out: Path, seed: int) -> int:
    """Write weights, index, config and side files; return the bytes of the weights."""
    index: dict[str, str] = {}
    total = 0
    for number, shard in enumerate(shards(tensors(raw, seed)), 1):
        # The number of shards is known only at the end.
        name = f"model-{number:05d}.safetensors"
        save_file(shard, out / name, metadata={"format": "pt"})
        index |= dict.fromkeys(shard, name)
        total += sum(tensor.nbytes for tensor in shard.values())
    listed = {"metadata": {"total_size": total}, "weight_map": index}
    (out / "model.safetensors.index.json").write_text(json.dumps(listed, indent=1) + "\n")
    (out / "config.json").write_text(json.dumps(raw, indent=1) + "\n")
    for name in SIDE_FILES:
        source = resolve_model("tiny") / name
        if source.is_file():
            shutil.copy(source, out / name)
    if raw["model_type"].startswith("qwen3"):
        write_image_settings(out, raw["vision_config"]["patch_size"])
    return total


def write_image_settings(out: Path, patch_size: int) -> None:
    """Replace the built-in model's settings of images, whose patches are smaller."""
    half = [0.5, 0.5, 0.5]
    settings = {
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
        "patch_size": patch_size,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": half,
        "image_std": half,
    }
    (out / "preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    (out / "video_preprocessor_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def tensors(raw: dict[str, Any], seed: int) -> Iterator[tuple[str, Tensor]]:
    """Generate every tensor of the checkpoint in bf16."""
    random = torch.Generator().manual_seed(seed)
    config = ModelConfig.from_dict(raw)
    zero_centred = config.text.norm_offset > 0
    nested = raw["model_type"].startswith("qwen3")
    for name, value in build_model(config).state_dict().items():
        stored = hub_name(name) if nested else name
        if value.dim() == 1:
            yield stored, torch.full(value.shape, vector_value(name, zero_centred)).bfloat16()
        else:
            noise = torch.empty(value.shape, dtype=torch.bfloat16)
            yield stored, noise.normal_(0, DEVIATION, generator=random)


def hub_name(name: str) -> str:
    """Name of a module's tensor in the files of Qwen3-VL and Qwen3.5."""
    if name.startswith("model."):
        return "model.language_model." + name.removeprefix("model.")
    return f"model.{name}" if name.startswith("visual.") else name


def vector_value(name: str, zero_centred: bool) -> float:
    """Value of the elements of a vector: norms multiply by one, biases and logarithms are zero."""
    if not name.endswith("weight"):
        return float(name.endswith("dt_bias"))
    of_decoder = name.startswith("model.") and not name.endswith("linear_attn.norm.weight")
    return float("norm" in name or "ln_q" in name) - float(zero_centred and of_decoder)


def shards(named: Iterator[tuple[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    """Group tensors in files of about SHARD_BYTES."""
    shard: dict[str, Tensor] = {}
    for name, tensor in named:
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = tensor
    yield shard


if __name__ == "__main__":
    main()
