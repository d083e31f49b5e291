"""Pad the heads of linear attention with channels that leave the function of a model unchanged.

vLLM's CPU kernels for linear attention take some widths of heads only, 128 among them; the built-in
model's heads have 32 channels.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PREFIX = ".linear_attn."
WEIGHTS = "model.safetensors"


def pad_heads(source: Path, out: Path, width: int) -> None:
    """Copy a checkpoint of Qwen3.5, with heads of `width` channels in its linear attention.

    New channels of queries, keys, values and gates are zero: their rows of `in_proj_qkv`,
    `in_proj_z` and `conv1d`, and the columns of `out_proj` that read them. Queries and keys are
    normalized to length 1, which zeros do not change. If keys become k times and values v times as
    wide, the output of a head is divided by the root of k, as its queries are, and its mean square
    by kv. The norm undoes that if its weight is divided by the root of v, and eps by kv. The config
    has one eps for all norms of the decoder, but the others read larger values.

    Args:
        source: folder with all weights in `model.safetensors`.
        out: replaced if it exists.
        width: channels of a head, both of keys and of values.

    Raises:
        ValueError: heads are wider than `width`.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    text = config["text_config"]
    key, value = int(text["linear_key_head_dim"]), int(text["linear_value_head_dim"])
    if max(key, value) > width:
        raise ValueError(
            f"{source}: heads of {key} (keys) and {value} (values) channels cannot be padded to "
            f"{width}; give {max(key, value)} or more"
        )
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(source, out)
    keys = int(text["linear_num_key_heads"]) * key
    tensors = load_file(source / WEIGHTS)
    for name, tensor in tensors.items():
        if PREFIX in name:
            padded = pad_tensor(name.rpartition(PREFIX)[2], tensor, keys, (key, value), width)
            tensors[name] = padded
    save_file(tensors, out / WEIGHTS, metadata={"format": "pt"})
    changed: dict[str, Any] = {
        "linear_key_head_dim": width,
        "linear_value_head_dim": width,
        "rms_norm_eps": text["rms_norm_eps"] * key * value / width**2,
    }
    config |= {"text_config": text | changed}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def pad_tensor(name: str, tensor: Tensor, keys: int, widths: tuple[int, int], width: int) -> Tensor:
    """Pad a tensor of linear attention, see `pad_heads`.

    Args:
        name: after `linear_attn.`; tensors without channels of heads are returned as they are.
        tensor: of the checkpoint.
        keys: channels of all keys.
        widths: channels of a head of keys, and of one of values.
        width: channels of a padded head.
    """
    key, value = widths
    if name == "norm.weight":
        return pad_axis(tensor * (value / width) ** 0.5, 0, value, width)
    if name == "out_proj.weight":
        return pad_axis(tensor, 1, value, width)
    if name == "in_proj_z.weight":
        return pad_axis(tensor, 0, value, width)
    if name in ("in_proj_qkv.weight", "conv1d.weight"):
        parts = [
            pad_axis(tensor[: 2 * keys], 0, key, width),
            pad_axis(tensor[2 * keys :], 0, value, width),
        ]
        return torch.cat(parts)
    return tensor


def pad_axis(tensor: Tensor, axis: int, old: int, width: int) -> Tensor:
    """Append zeros to every run of `old` entries along an axis, so that it has `width` entries."""
    split = tensor.unflatten(axis, (-1, old))  # type: ignore[no-untyped-call]
    shape = [*split.shape]
    shape[axis + 1] = width - old
    added = torch.zeros(shape, dtype=tensor.dtype)
    return torch.cat([split, added], dim=axis + 1).flatten(axis, axis + 1).contiguous()
