"""`tiny-outliers`: the built-in model with activation outliers and bit-identical logits.

Large language models have a few channels of huge activations (Dettmers et al., arXiv 2208.07339,
section 4), which make int8 activations lossy. A small model has none. Here 1.5 % of the output
channels of every norm, value and up projection are scaled up by powers of two, at most 16, and the
columns that read them are scaled down. Powers of two round nothing: all logits stay bit-identical,
while the range of the activations grows. Zero-centred norms are left as they are, because a power
of two times 1 + w is not 1 plus a number of the weight's dtype.

The final norm is not scaled: with a tied head the column to scale down is the token embedding,
which is the model's input as well.
"""

import hashlib
import json
from pathlib import Path

import torch
from torch import Tensor

from ...common.atomic import atomic_folder
from ...common.result_cache import cache_folder
from ...common.safetensors_writer import write_tensors
from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ...model.families import NormBinding, family_of
from ...model.weight_files import SINGLE_FILE
from ..methods.channel_scaling import count_channels, rescale_, source_of
from .safetensors_folder.shards import copy_side_files

SHARE = 0.015
"""Fraction of the channels of each tensor that is scaled."""
FACTORS = (4.0, 8.0, 16.0)
"""Factors to draw from."""
_VERSION = 1  # of the derivation; part of the cache key


def outlier_folder(source: Path, *, seed: int = 0, cache: Path | None = None) -> Path:
    """Return the derived checkpoint of `source`, created on the first call and cached.

    Args:
        source: a float checkpoint.
        seed: random seed of the channels.
        cache: cache folder; default `$VLPRESS_CACHE` or `~/.cache/vlpress`.

    Raises:
        ValueError: the source is quantized.
    """
    if cache is None:
        cache = cache_folder()
    folder = cache / f"outliers-{_key(source, seed)}"
    if folder.is_dir():
        return folder
    # Several processes may derive it at once; their results are the same.
    with atomic_folder(folder, existing="keep") as staged:
        derive_outliers(source, staged, seed=seed)
    return folder


def derive_outliers(source: Path, out: Path, *, seed: int = 0) -> None:
    """Write the rescaled checkpoint into an existing empty folder.

    Raises:
        ValueError: the source is quantized.
    """
    config = ModelConfig.from_folder(source)
    if config.raw.get("quantization_config") is not None:
        raise ValueError(f"{source} is quantized; outliers can be added to the original model only")
    reader = CheckpointReader(source)
    tensors = {name: reader.tensor(name).clone() for name in reader.names()}
    add_outliers_(tensors, config, seed=seed)
    stored = {reader.source_name(name): tensor for name, tensor in tensors.items()}
    write_tensors(stored, out / SINGLE_FILE)
    copy_side_files(source, out, ("config.json", *family_of(config).side_files))


def add_outliers_(tensors: dict[str, Tensor], config: ModelConfig, *, seed: int = 0) -> None:
    """Rescale a model's tensors in place; its function stays bit-identical.

    Args:
        tensors: all weights by canonical name.
        config: of the model.
        seed: random seed of channels and factors, together with each tensor's name.
    """
    experts = {
        f"{spec.name}.weight": spec.slice.view(tensors[spec.slice.tensor])
        for spec in family_of(config).linears(config)
        if spec.slice is not None and spec.slice.tensor in tensors
    }
    weights = {**tensors, **experts}
    for stage in family_of(config).stages:
        for index, block in enumerate(stage.blocks(config)):
            for group in stage.bindings(config, index):
                if isinstance(group, NormBinding) and group.offset:
                    continue  # offset + weight would be rounded
                count = count_channels(weights, block, group)
                factors = choose_factors(count, f"{seed}/{block}.{source_of(group)}")
                rescale_(weights, block, group, factors, config)


def choose_factors(channels: int, key: str) -> Tensor:
    """Draw factors, float32 `[channels]`: ones with a few powers of two, determined by `key`.

    The first channel drawn gets the largest factor, so that every tensor has one.
    """
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(SHARE * channels))
    chosen = torch.randperm(channels, generator=generator)[:count]
    picks = torch.randint(len(FACTORS), (count,), generator=generator)
    picks[0] = len(FACTORS) - 1
    factors = torch.ones(channels)
    factors[chosen] = torch.tensor(FACTORS)[picks]
    return factors


def _key(source: Path, seed: int) -> str:
    """Hash the source's files and the parameters of the derivation."""
    digest = hashlib.sha256(json.dumps([_VERSION, seed, SHARE, FACTORS]).encode())
    for path in sorted(source.iterdir()):
        if path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
