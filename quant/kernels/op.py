"""Products with quantized weights as an operator of torch, for `torch.compile` and `torch.export`.

A compiler cannot look into a call through ctypes. Code that runs eagerly calls `cpu.Product`
itself: dispatching an operator takes tens of microseconds.
"""

from __future__ import annotations

import itertools
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .cpu import Product

_KNOWN: WeakValueDictionary[int, Product] = WeakValueDictionary()
_NUMBERS = itertools.count()


def register(product: Product) -> int:
    """A number by which the operator finds a product as long as it lives."""
    number = next(_NUMBERS)
    _KNOWN[number] = product
    return number


@torch.library.custom_op("vlpress::products", mutates_args=())
def products(x: Tensor, number: int, widths: list[int], input_scale: float | None) -> list[Tensor]:
    """What the product of that number gives.

    Args:
        x: ``[..., K]``.
        number: of `register`.
        widths: out_features of each weight.
        input_scale: as `Product` takes it.

    Returns:
        ``[..., N]`` for each weight.
    """
    return _KNOWN[number](x, input_scale)


@products.register_fake
def _(x: Tensor, number: int, widths: list[int], input_scale: float | None) -> list[Tensor]:
    return [x.new_empty((*x.shape[:-1], width)) for width in widths]
