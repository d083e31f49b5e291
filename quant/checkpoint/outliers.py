"""`tiny-outliers`: the built-in model with activation outliers, and the same answers.

Large language models have a few channels of huge activations (Dettmers et al., arXiv 2208.07339,
section 4); a small one has none, and so hides what they do to integer activations. Here 1.5 % of
the channels behind every norm, value and up projection are scaled up by powers of two of at most
16, and the columns that read them down. All logits stay the same to the last bit, while the range
of the tensors grows.

The final norm is left alone: with a tied head the column that would have to shrink is the token
embedding, which is the model's input as well.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from torch import Tensor

from ...common.atomic import atomic_folder
from ...common.safetensors_writer import write_tensors
from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ...model.families import family_of
from ...model.weight_files import SINGLE_FILE
from ..methods.channel_scaling import count_channels, rescale_, source_of
from .formats.folder import copy_side_files

OUTLIERS = "tiny-outliers"
SHARE = 0.015
"""Share of the channels of each tensor that is scaled."""
FACTORS = (4.0, 8.0, 16.0)
_VERSION = 1  # of the derivation: part of the cache's key


def outlier_folder(source: Path, *, seed: int = 0, cache: Path | None = None) -> Path:
    """The derived checkpoint of `source`, made on the first call and kept in a cache.

    Args:
        source: a checkpoint in float weights.
        seed: decides the channels.
        cache: where it is kept; default ``$VLPRESS_CACHE`` or ``~/.cache/vlpress``.

    Raises:
        ValueError: the source is quantized.
    """
    if cache is None:
        cache = Path(os.environ.get("VLPRESS_CACHE") or Path.home() / ".cache" / "vlpress")
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
        raise ValueError(f"{source}: is quantized; outliers are made in the original model only")
    reader = CheckpointReader(source)
    tensors = {name: reader.tensor(name).clone() for name in reader.names()}
    add_outliers_(tensors, config, seed=seed)
    stored = {reader.source_name(name): tensor for name, tensor in tensors.items()}
    write_tensors(stored, out / SINGLE_FILE)
    copy_side_files(source, out, ("config.json", *family_of(config).side_files))


def add_outliers_(tensors: dict[str, Tensor], config: ModelConfig, *, seed: int = 0) -> None:
    """Rescale a model's tensors in place; the function they compute stays bit-identical.

    Args:
        tensors: all weights by canonical name.
        config: the model they belong to.
        seed: decides channels and factors, together with each tensor's name.
    """
    for stage in family_of(config).stages:
        for block in stage.blocks(config):
            for group in stage.bindings:
                count = count_channels(tensors, block, group)
                factors = choose_factors(count, f"{seed}/{block}.{source_of(group)}")
                rescale_(tensors, block, group, factors, config)


def choose_factors(channels: int, key: str) -> Tensor:
    """float32 ``[channels]`` of ones with a few powers of two, fixed by `key`.

    The first channel drawn takes the largest factor, so that every tensor has one.
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
    digest = hashlib.sha256(json.dumps([_VERSION, seed, SHARE, FACTORS]).encode())
    for path in sorted(source.iterdir()):
        if path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
