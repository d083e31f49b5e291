"""Stored bytes of one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ..checkpoint.formats.format import Format
from ..recipe.scheme import Scheme

if TYPE_CHECKING:
    from ...model.families import LinearSpec


def float_bytes(spec: LinearSpec, itemsize: int) -> int:
    """Count the bytes of weight and bias in float."""
    return itemsize * (spec.weights + (spec.out_features if spec.bias else 0))


def quantized_bytes(
    spec: LinearSpec, scheme: Scheme, format: Format, dtype: torch.dtype
) -> tuple[int, int]:
    """Count the bytes of a quantized layer in a format.

    Args:
        spec: with padded widths.
        scheme: of the layer.
        format: of the checkpoint.
        dtype: of the source's float tensors.

    Returns:
        The bytes of its tensors without the bias, and those of the bias.

    Raises:
        ValueError: the width does not divide into whole groups.
    """
    packed = format.stored_bytes(spec, scheme, dtype)
    return packed, format.bias_dtype(dtype).itemsize * spec.out_features if spec.bias else 0
