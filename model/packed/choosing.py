"""The choice of a tensor's layout, by the coded size of its first bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

from .entropy_coder import encode
from .layouts import WORD, Bytes, Codes, ItemBytes, Layout, NonZeros, Plain, Planes

SAMPLE = 2**16
"""Bytes that layouts are compared on."""
GAIN = 0.01
"""Share of the coded size that a layout must save over the ones before it."""
FLOATS: dict[str, ItemBytes] = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
INTEGERS: dict[str, ItemBytes] = {"I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}
PACKED = ("I32", "U32", "U8")
"""Dtypes of tensors that can be packed integers; those of 4 bits in bytes are FP4."""


def choose_layout(dtype: str, shape: Sequence[int], head: Bytes, largest_unit: int) -> Layout:
    """Choose the layout that codes best; the earlier candidate unless one is clearly better.

    Measured rather than derived from entropies: zstandard stores streams that are nearly flat, such
    as two FP4 codes a byte, of which single codes do get shorter.

    Args:
        dtype: name of the tensor's dtype in safetensors files.
        shape: of the tensor.
        head: its first bytes, at least `largest_unit` of them, or all.
        largest_unit: in bytes.
    """
    best: Layout = Plain()
    if not len(head):
        return best
    least = _coded_share(best, head)
    for layout in _candidates(dtype, shape, min(largest_unit, len(head))):
        share = _coded_share(layout, head)
        if share < (1 - GAIN) * least:
            best, least = layout, share
    return best


def _candidates(dtype: str, shape: Sequence[int], largest_unit: int) -> Iterator[Layout]:
    if dtype in FLOATS:
        yield Planes(FLOATS[dtype], rotate=True)
        yield NonZeros(FLOATS[dtype], rotate=True)
    elif dtype in INTEGERS:
        yield Planes(INTEGERS[dtype], rotate=False)
    if dtype not in PACKED or not shape:
        return
    item = INTEGERS.get(dtype, 1)
    if prod(shape) * item % Codes(4, 1).unit == 0:
        yield Codes(4, 1)
    if item == WORD:
        rows, columns = shape[0], prod(shape[1:])
        for bits in (3, 5, 6, 7):
            for stride, length in ((1, columns), (columns, rows)):
                if length % bits == 0 and WORD * bits * stride <= largest_unit:
                    yield Codes(bits, stride)


def _coded_share(layout: Layout, head: Bytes) -> float:
    """Return the coded size of a sample as a share of its size."""
    size = min(len(head), max(SAMPLE, layout.unit)) // layout.unit * layout.unit
    return sum(len(encode(stream.tobytes())) for stream in layout.split(head[:size])) / size
