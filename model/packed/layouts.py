"""Layouts: the bytes of a tensor regrouped into streams that an entropy coder shortens.

Order-0 coding sees single bytes. The exponents of floats are worth coding and their mantissas are
not, so the bytes of an element become separate streams; integers of 3, 5, 6 or 7 bits are aligned
to bytes. Everything else is one stream as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ...common.validation import Integer, parse, shown, validated

Bytes = npt.NDArray[np.uint8]
WORD = 4
"""Bytes of a word of packed integers."""
LARGEST_STRIDE = 2**24
ItemBytes = Literal[2, 4, 8]
CodeBits = Literal[3, 4, 5, 6, 7]


class Layout(Protocol):
    """A bijection between the bytes of a block and its streams."""

    kind: ClassVar[str]

    @property
    def unit(self) -> int:
        """Bytes; the size of a block is a multiple of it."""
        ...

    def split(self, block: Bytes) -> list[Bytes]:
        """Return the streams of a block."""
        ...

    def join(self, streams: Sequence[Bytes], size: int) -> Bytes:
        """Return the block of `size` bytes that has these streams.

        Raises:
            ValueError: the streams are not those of a block of this size.
        """
        ...


@validated
class Plain:
    """One stream: the bytes as they are. Integers of 2, 4 and 8 bits share no byte partly."""

    kind: ClassVar[str] = "plain"
    unit: ClassVar[int] = 1

    def split(self, block: Bytes) -> list[Bytes]:
        """See `Layout.split`."""
        return [block]

    def join(self, streams: Sequence[Bytes], size: int) -> Bytes:
        """See `Layout.join`."""
        _check(streams, [size])
        return streams[0]


@validated
class Planes:
    """One stream per byte of an element, the least significant byte first.

    Elements of floats are rotated left by one bit: the exponent then fills the upper bits, and the
    sign, which does not compress, is among the mantissa's (for bf16 two streams: mantissa and sign,
    exponent).
    """

    kind: ClassVar[str] = "planes"

    item: ItemBytes
    """Bytes of an element."""
    rotate: bool

    @property
    def unit(self) -> int:
        """See `Layout.unit`."""
        return self.item

    def split(self, block: Bytes) -> list[Bytes]:
        """See `Layout.split`."""
        elements = block.view(f"<u{self.item}")
        if self.rotate:
            elements = (elements << 1) | (elements >> (8 * self.item - 1))
        by_byte = elements.view(np.uint8).reshape(-1, self.item)
        return [np.ascontiguousarray(by_byte[:, index]) for index in range(self.item)]

    def join(self, streams: Sequence[Bytes], size: int) -> Bytes:
        """See `Layout.join`."""
        _check(streams, [size // self.item] * self.item)
        by_byte = np.empty((size // self.item, self.item), np.uint8)
        for index, stream in enumerate(streams):
            by_byte[:, index] = stream
        elements = by_byte.reshape(-1).view(f"<u{self.item}")
        if self.rotate:
            elements = (elements >> 1) | (elements << (8 * self.item - 1))
        return elements.view(np.uint8)


@validated
class NonZeros:
    """A bit per element that says whether it is nonzero, then the planes of those that are.

    For tensors with many zeros, of which a code word per byte costs at least a bit.
    """

    kind: ClassVar[str] = "nonzeros"

    item: ItemBytes
    """As in `Planes`."""
    rotate: bool

    @property
    def unit(self) -> int:
        """See `Layout.unit`."""
        return self.item

    def split(self, block: Bytes) -> list[Bytes]:
        """See `Layout.split`."""
        elements = block.view(f"<u{self.item}")
        mask = elements != 0
        nonzero = elements[mask].view(np.uint8)
        return [np.packbits(mask, bitorder="little"), *self._planes.split(nonzero)]

    def join(self, streams: Sequence[Bytes], size: int) -> Bytes:
        """See `Layout.join`."""
        count = size // self.item
        _check(streams[:1], [-(-count // 8)])
        mask = np.unpackbits(streams[0], count=count, bitorder="little").view(bool)
        nonzero = self._planes.join(streams[1:], self.item * int(mask.sum()))
        elements = np.zeros(count, f"<u{self.item}")
        elements[mask] = nonzero.view(elements.dtype)
        return elements.view(np.uint8)

    @property
    def _planes(self) -> Planes:
        return Planes(self.item, self.rotate)


@validated
class Codes:
    """Integers of 3 to 7 bits in words of 32 bits, aligned to bytes; of 3 bits, two a byte.

    The words are those of `quant/checkpoint/formats/packing.py`: 32 integers fill `bits` words as
    one stream of bits. These words are `stride` words apart (GPTQ packs along the rows of a
    tensor), or adjacent.
    """

    kind: ClassVar[str] = "codes"

    bits: CodeBits
    stride: Annotated[int, Integer(1, LARGEST_STRIDE)]

    @property
    def unit(self) -> int:
        """See `Layout.unit`."""
        return WORD * self.bits * self.stride

    def split(self, block: Bytes) -> list[Bytes]:
        """See `Layout.split`."""
        words = block.view("<u4").reshape(-1, self.bits, self.stride).transpose(0, 2, 1)
        bits = np.unpackbits(np.ascontiguousarray(words).view(np.uint8).ravel(), bitorder="little")
        symbols = bits.reshape(-1, ALIGNED[self.bits])
        # Rows of fewer than eight bits are padded with zeros.
        return [np.packbits(symbols, axis=1, bitorder="little").ravel()]

    def join(self, streams: Sequence[Bytes], size: int) -> Bytes:
        """See `Layout.join`."""
        width = ALIGNED[self.bits]
        _check(streams, [8 * size // width])
        bits = np.unpackbits(streams[0].reshape(-1, 1), axis=1, count=width, bitorder="little")
        stream = np.packbits(bits.ravel(), bitorder="little").view("<u4")
        words = stream.reshape(-1, self.stride, self.bits).transpose(0, 2, 1)
        return np.ascontiguousarray(words).view(np.uint8).reshape(-1)


ALIGNED = {3: 6, 4: 4, 5: 5, 6: 6, 7: 7}
"""Bits of a symbol by bits of an integer. 32 integers are a whole number of symbols."""

LAYOUTS: dict[str, type[Layout]] = {
    layout.kind: layout for layout in (Plain, Planes, NonZeros, Codes)
}


def describe(layout: Layout) -> dict[str, Any]:
    """Return a layout as JSON, the input of `parse_layout`."""
    parameters: Any = layout
    return {"kind": layout.kind, **asdict(parameters)}


def parse_layout(described: Mapping[str, Any]) -> Layout:
    """Return the layout that an index describes.

    Raises:
        ValueError: the kind or a parameter is unknown or out of range.
    """
    parameters = dict(described)
    kind = parameters.pop("kind", None)
    if not isinstance(kind, str) or kind not in LAYOUTS:
        raise ValueError(f"layout {shown(kind)} is unknown; allowed: {', '.join(LAYOUTS)}")
    return parse(LAYOUTS[kind], parameters, f"layout {kind}")


def _check(streams: Sequence[Bytes], sizes: Sequence[int]) -> None:
    if [len(stream) for stream in streams] != list(sizes):
        raise ValueError(f"streams of {[len(s) for s in streams]} bytes; expected {list(sizes)}")
