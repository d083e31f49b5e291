"""The choice of a tensor's layout, by the order-0 entropy of its first bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log, prod

import numpy as np

from .entropy_coder import order0_bits
from .layouts import WORD, Bytes, Codes, ItemBytes, Layout, NonZeros, Plain, Planes

SAMPLE = 2**16
"""Bytes that layouts are compared on."""
GAIN = 0.01
"""Share of the entropy that a layout must save over the ones before it."""
FLOATS: dict[str, ItemBytes] = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
INTEGERS: dict[str, ItemBytes] = {"I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}


def choose_layout(dtype: str, shape: Sequence[int], head: Bytes, largest_unit: int) -> Layout:
    """Choose the layout with the least entropy; the earlier candidate unless one is clearly better.

    Args:
        dtype: name of the tensor's dtype in safetensors files.
        shape: of the tensor.
        head: its first bytes, at least `largest_unit` of them, or all.
        largest_unit: in bytes.
    """
    best: Layout = Plain()
    if not len(head):
        return best
    least = _entropy(best, head)
    for layout in _candidates(dtype, shape, min(largest_unit, len(head))):
        entropy = _entropy(layout, head)
        if entropy < (1 - GAIN) * least:
            best, least = layout, entropy
    return best


def _candidates(dtype: str, shape: Sequence[int], largest_unit: int) -> Iterator[Layout]:
    if dtype in FLOATS:
        yield Planes(FLOATS[dtype], rotate=True)
        yield NonZeros(FLOATS[dtype], rotate=True)
    elif dtype in INTEGERS:
        yield Planes(INTEGERS[dtype], rotate=False)
    if INTEGERS.get(dtype) == WORD and shape:
        rows, columns = shape[0], prod(shape[1:])
        for bits in (3, 5, 6, 7):
            for stride, length in ((1, columns), (columns, rows)):
                if length % bits == 0 and WORD * bits * stride <= largest_unit:
                    yield Codes(bits, stride)


def _entropy(layout: Layout, head: Bytes) -> float:
    """Estimate the order-0 entropy of the streams of a tensor, in bits per byte of it.

    With the correction of Miller (1955) for the bias of a sample: half a nat per further symbol.
    """
    size = min(len(head), max(SAMPLE, layout.unit)) // layout.unit * layout.unit
    streams = [stream for stream in layout.split(head[:size]) if len(stream)]
    symbols = sum(len(np.unique(stream)) - 1 for stream in streams)
    return (sum(map(order0_bits, streams)) + symbols / (2 * log(2))) / size
