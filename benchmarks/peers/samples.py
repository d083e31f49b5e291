"""Calibration samples on disk, as keyword arguments of a transformers model.

Imported in every environment; needs only torch and safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import pad

Inputs = dict[str, Tensor]
"""int64 `input_ids`, `attention_mask` and `mm_token_type_ids` `[B, T]`; `pixel_values`, float32
`[patches, width]`, and `image_grid_thw`, int64 `[images, 3]`, of all B in order."""


def write(samples: Sequence[Inputs], path: Path) -> None:
    """Write samples in order to a safetensors file."""
    tensors = {
        f"{index:04d}.{name}": tensor.contiguous()
        for index, sample in enumerate(samples)
        for name, tensor in sample.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)


def read(path: Path) -> list[Inputs]:
    """Read samples written by `write`."""
    samples: dict[str, Inputs] = {}
    for key, tensor in sorted(load_file(path).items()):
        index, _, name = key.partition(".")
        samples.setdefault(index, {})[name] = tensor
    return list(samples.values())


def batches(samples: Sequence[Inputs], size: int, filler: int) -> list[Inputs]:
    """Group samples of similar length in batches, padded on the right.

    The mask is all ones: attention is causal, so that padding on the right affects no real token.

    Args:
        samples: batches of one.
        size: samples per batch.
        filler: padding token; not an image token.
    """
    ordered = sorted(samples, key=lambda sample: sample["input_ids"].shape[1])
    return [_join(ordered[start : start + size], filler) for start in range(0, len(ordered), size)]


def _join(samples: Sequence[Inputs], filler: int) -> Inputs:
    longest = samples[-1]["input_ids"].shape[1]
    fillers = {"input_ids": filler, "attention_mask": 1, "mm_token_type_ids": 0}
    joined = {}
    for name in samples[0]:
        parts = [sample[name] for sample in samples]
        if name in fillers:
            parts = [pad(p, (0, longest - p.shape[1]), value=fillers[name]) for p in parts]
        joined[name] = torch.cat(parts)
    return joined
