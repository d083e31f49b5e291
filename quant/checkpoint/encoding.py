"""Encoding of layers for any format, with a check that nothing is lost."""

import torch
from torch import Tensor

from ..compressed_weight import CompressedWeight
from .formats.format import Format


def encode_layer(
    weight: CompressedWeight, format: Format, dtype: torch.dtype, name: str
) -> dict[str, Tensor]:
    """Encode a layer, and check that decoding returns the same layer.

    Args:
        weight: the layer.
        format: one that can hold it.
        dtype: in which the model computes, see `stored_dtype`.
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
