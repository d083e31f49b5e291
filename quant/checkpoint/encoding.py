"""Encoding of layers for any format, with a check that nothing is lost."""

import torch
from torch import Tensor

from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ..compressed_weight import CompressedWeight
from .formats.format import Format
from .safetensors_folder.shards import EMBEDDING


def encode_layer(
    weight: CompressedWeight, format: Format, dtype: torch.dtype, name: str
) -> dict[str, Tensor]:
    """Encode a layer, and check that decoding returns the same layer.

    Args:
        weight: the layer.
        format: one that can hold it.
        dtype: in which the model computes, see `computing_dtype`.
        name: of the layer, for messages.

    Returns:
        The tensors by part.

    Raises:
        ValueError: the format cannot represent a number of the layer.
        RuntimeError: the decoded layer differs.
    """
    try:
        tensors = format.encode(weight, dtype)
    except ValueError as error:
        raise ValueError(f"format {format.name}: {name}: {error}") from None
    if not format.decode(tensors, weight.scheme, name).equals(weight):
        raise RuntimeError(f"{name}: packed and unpacked weights differ; nothing was written")
    return tensors


def computing_dtype(config: ModelConfig, reader: CheckpointReader) -> torch.dtype:
    """Return the dtype in which engines compute with a checkpoint."""
    return config.dtype or reader.dtype(EMBEDDING)
