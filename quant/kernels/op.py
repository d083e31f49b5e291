"""Quantized CPU products as a torch operator, for `torch.compile` and `torch.export`.

A compiler cannot trace a call through ctypes. Eager code calls `CpuLinear` directly, because
dispatching an operator takes tens of microseconds.
"""

from __future__ import annotations

import itertools
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .cpu import CpuLinear

# Operators take tensors and numbers only, so that layers are passed by number. Weak values: the
# registry must not keep the weights of a deleted model.
_LAYERS: WeakValueDictionary[int, CpuLinear] = WeakValueDictionary()
_NUMBERS = itertools.count()


def register(linear: CpuLinear) -> int:
    """Assign a number to a layer, valid as long as the layer exists."""
    number = next(_NUMBERS)
    _LAYERS[number] = linear
    return number


@torch.library.custom_op("vlpress::quantized_linear", mutates_args=())
def quantized_linear(
    x: Tensor, number: int, widths: list[int], input_scale: float | None
) -> list[Tensor]:
    """Call the layer with this number.

    Args:
        x: `[..., K]`.
        number: from `register`.
        widths: out_features of each weight.
        input_scale: as in `CpuLinear`.

    Returns:
        `[..., N]` for each weight.
    """
    return _LAYERS[number](x, input_scale)


@quantized_linear.register_fake
def _(x: Tensor, number: int, widths: list[int], input_scale: float | None) -> list[Tensor]:
    return [x.new_empty((*x.shape[:-1], width)) for width in widths]
