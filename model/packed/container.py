"""The container of one safetensors file: coded blocks, an index, a trailer (docs/packed.md).

    magic, version     16 bytes
    blocks             the coded streams of each block, without gaps
    index              JSON, compressed
    trailer            offset and size of the index, its sha256, magic

The index describes the file as consecutive segments: the header, then each tensor in the order of
its offsets. A segment is divided into blocks, which are decoded independently of each other, so
that a tensor or a few of its rows can be read without the rest.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
import zstandard

from ...common.ordered_map import ordered_map
from ...common.validation import Integer, parse, validated
from ..config import refuse_pointer
from .entropy_coder import decode, encode
from .header import LARGEST_HEADER, LENGTH, TensorInfo, parse_header
from .layouts import Bytes, Layout, describe, parse_layout

MAGIC = b"VLPRESSZ"
VERSION = 1
START = struct.Struct("<8sII")
"""Magic, version, zero."""
TRAILER = struct.Struct("<QQ32s8s")
"""Offset and bytes of the index, sha256 of these bytes, magic."""
BLOCK = 2**20
"""Largest size of a block in bytes of the tensor."""
LARGEST_INDEX = 2**28
"""Bytes; 2**23 blocks, or 8 TiB of tensors, need less."""
EXPANSION = 2
"""Bound on the bytes of a block's streams as a multiple of the block's; layouts need 8/5."""
HEADER = ""
"""Name of the segment that is the header; tensors have names."""

Count = Annotated[int, Integer(0)]
Digest = str


@dataclass(frozen=True)
class Block:
    """One block of a segment.

    Attributes:
        crc: CRC-32 of its bytes in the tensor.
        streams: coded size and size of each stream; equal if the stream is stored as it is.
        offset: of its first stream in the container.
        size: bytes in the tensor.
    """

    crc: int
    streams: tuple[tuple[int, int], ...]
    offset: int
    size: int

    @property
    def coded(self) -> int:
        """Bytes in the container."""
        return sum(coded for coded, _ in self.streams)


@dataclass(frozen=True)
class Segment:
    """A tensor, or the header."""

    name: str
    size: int
    layout: Layout
    block: int
    """Bytes of each block but the last, which may have fewer."""
    sha256: Digest
    blocks: Sequence[Block]

    @property
    def coded(self) -> int:
        """Bytes in the container."""
        return sum(block.coded for block in self.blocks)


@validated
class _StoredSegment:
    """A segment in the index: a block is its CRC, then coded size and size of each stream."""

    name: str
    size: Count
    layout: Mapping[str, Any]
    block: Annotated[int, Integer(1, BLOCK)]
    sha256: Digest
    blocks: Sequence[Sequence[Count]]


@validated
class _StoredIndex:
    size: Count
    sha256: Digest
    segments: Sequence[_StoredSegment]


@dataclass(frozen=True)
class Index:
    """Content of a container.

    Attributes:
        size: bytes of the safetensors file.
        sha256: its digest.
        segments: in the order of the file.
    """

    size: int
    sha256: Digest
    segments: Sequence[Segment]

    @cached_property
    def by_name(self) -> dict[str, Segment]:
        """Segments by name."""
        return {segment.name: segment for segment in self.segments}

    def to_bytes(self) -> bytes:
        """Return the compressed index."""
        stored = {
            "size": self.size,
            "sha256": self.sha256,
            "segments": [_stored(segment) for segment in self.segments],
        }
        text = json.dumps(stored, separators=(",", ":"), ensure_ascii=False)
        data: bytes = zstandard.ZstdCompressor(level=9).compress(text.encode("utf-8"))
        return data


def damaged(path: Path, problem: object) -> ValueError:
    """Build the error for a container that cannot be read."""
    return ValueError(f"{path}: damaged container ({problem}); fetch it again, or pack again")


def read_index(file: BinaryIO, path: Path) -> Index:
    """Read the index of an open container.

    Args:
        file: the container.
        path: for messages.

    Raises:
        ValueError: it is not a container, is of another version, or is damaged.
    """
    refuse_pointer(path)
    try:
        return _parse_index(*_index_bytes(file))
    except zstandard.ZstdError as error:
        raise damaged(path, f"its index: {error}") from None
    except ValueError as error:
        raise damaged(path, error) from None


def encode_block(layout: Layout, data: bytes) -> tuple[int, list[tuple[bytes, int]]]:
    """Return the CRC of a block, and coded bytes and size of each of its streams."""
    streams = [
        (encode(stream.tobytes()), len(stream))
        for stream in layout.split(np.frombuffer(data, np.uint8))
    ]
    return zlib.crc32(data), streams


def decode_block(layout: Layout, block: Block, data: bytes) -> Bytes:
    """Return the bytes of a block in the tensor.

    Args:
        layout: of its segment.
        block: the block.
        data: its bytes in the container.

    Raises:
        ValueError: the data are damaged.
    """
    ends = list(accumulate((coded for coded, _ in block.streams), initial=0))
    streams = [
        np.frombuffer(decode(data[begin:end], size), np.uint8)
        for (begin, end), (_, size) in zip(pairwise(ends), block.streams, strict=True)
    ]
    values = layout.join(streams, block.size)
    if zlib.crc32(values.data) != block.crc:
        raise ValueError("its checksum is wrong")
    return values


def read_blocks(
    file: BinaryIO, path: Path, segment: Segment, indices: range, threads: int
) -> Iterator[Bytes]:
    """Decode some blocks of a segment, in order.

    Args:
        file: the container.
        path: for messages.
        segment: the segment.
        indices: of the blocks.
        threads: see `ordered_map`.

    Raises:
        ValueError: a block is damaged; the message names it and the tensor.
    """

    def load() -> Iterator[tuple[int, bytes]]:
        for index in indices:
            block = segment.blocks[index]
            file.seek(block.offset)
            yield index, file.read(block.coded)

    def decoded(job: tuple[int, bytes]) -> Bytes:
        index, data = job
        try:
            return decode_block(segment.layout, segment.blocks[index], data)
        except ValueError as error:
            of = f"tensor {segment.name!r}" if segment.name else "the header"
            raise damaged(path, f"block {index} of {of}: {error}") from None

    return ordered_map(decoded, load(), min(threads, max(1, len(indices))))


def read_header(file: BinaryIO, path: Path, index: Index) -> list[TensorInfo]:
    """Decode the header of the safetensors file, and compare it with the index.

    Raises:
        ValueError: it is damaged, or its tensors are not the segments of the index.
    """
    segment = index.segments[0]
    if segment.size > LENGTH + LARGEST_HEADER:
        raise damaged(path, f"a header of {segment.size} bytes; allowed: {LARGEST_HEADER}")
    blocks = read_blocks(file, path, segment, range(len(segment.blocks)), 1)
    header = b"".join(block.tobytes() for block in blocks)
    try:
        tensors = parse_header(header, index.size)
    except ValueError as error:
        raise damaged(path, error) from None
    expected = [(tensor.name, tensor.end - tensor.begin) for tensor in tensors]
    if expected != [(segment.name, segment.size) for segment in index.segments[1:]]:
        raise damaged(path, "header and index name different tensors")
    return tensors


def _index_bytes(file: BinaryIO) -> tuple[bytes, int]:
    """Read the index, decompressed, and the offset of its compressed bytes."""
    total = file.seek(0, 2)
    file.seek(0)
    start = file.read(START.size)
    if len(start) < START.size or start[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{total} bytes that do not begin with {MAGIC.decode()}")
    _, version, zero = START.unpack(start)
    if version != VERSION or zero:
        raise ValueError(f"version {version}.{zero}; allowed: {VERSION}.0")
    if total < START.size + TRAILER.size:
        raise ValueError(f"truncated after {total} bytes")
    file.seek(total - TRAILER.size)
    offset, size, digest, magic = TRAILER.unpack(file.read(TRAILER.size))
    if magic != MAGIC or offset + size + TRAILER.size != total:
        raise ValueError(f"no trailer at the end of its {total} bytes")
    file.seek(offset)
    coded = file.read(size)
    if hashlib.sha256(coded).digest() != digest:
        raise ValueError("the checksum of its index is wrong")
    frame = zstandard.get_frame_parameters(coded)
    if not 0 <= frame.content_size <= LARGEST_INDEX:
        raise ValueError(f"an index of {frame.content_size} bytes; allowed: {LARGEST_INDEX}")
    text: bytes = zstandard.ZstdDecompressor(max_window_size=LARGEST_INDEX).decompress(
        coded, max_output_size=LARGEST_INDEX, allow_extra_data=False
    )
    return text, offset


def _parse_index(text: bytes, end: int) -> Index:
    """Parse an index whose blocks end at `end` in the container."""
    try:
        raw = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its index is not valid JSON: {error}") from None
    stored = parse(_StoredIndex, raw, "its index")
    segments, offset = [], START.size
    for each in stored.segments:
        segment, offset = _segment(each, offset)
        segments.append(segment)
    if not segments or segments[0].name != HEADER:
        raise ValueError("its index begins without a header")
    if len({segment.name for segment in segments}) != len(segments):
        raise ValueError("its index names a tensor twice")
    if sum(segment.size for segment in segments) != stored.size:
        raise ValueError(f"its tensors are not {stored.size} bytes")
    if offset != end:
        raise ValueError(f"its blocks end at {offset}, its index begins at {end}")
    return Index(stored.size, stored.sha256, segments)


def _segment(stored: _StoredSegment, offset: int) -> tuple[Segment, int]:
    """Return a segment whose first block is at `offset`, and the offset after its last block."""
    layout = parse_layout(stored.layout)
    name = stored.name or "header"
    if stored.size % layout.unit or stored.block % layout.unit:
        raise ValueError(f"{name}: blocks are no multiple of {layout.unit} bytes")
    if len(stored.blocks) != -(-stored.size // stored.block):
        raise ValueError(f"{name}: {len(stored.blocks)} blocks for {stored.size} bytes")
    blocks = []
    for number, (crc, *sizes) in enumerate(map(_with_crc, stored.blocks)):
        size = min(stored.block, stored.size - number * stored.block)
        streams = tuple(zip(sizes[::2], sizes[1::2], strict=True))
        block = Block(crc, streams, offset, size)
        if sum(of for _, of in streams) > EXPANSION * size or any(c > of for c, of in streams):
            raise ValueError(f"{name}: streams of block {number} are too large")
        blocks.append(block)
        offset += block.coded
    segment = Segment(stored.name, stored.size, layout, stored.block, stored.sha256, blocks)
    return segment, offset


def _with_crc(block: Sequence[int]) -> Sequence[int]:
    if len(block) % 2 == 0:
        raise ValueError(f"a block of {len(block)} numbers; allowed: an odd number")
    return block


def _stored(segment: Segment) -> dict[str, Any]:
    return {
        "name": segment.name,
        "size": segment.size,
        "layout": describe(segment.layout),
        "block": segment.block,
        "sha256": segment.sha256,
        "blocks": [[b.crc, *(n for pair in b.streams for n in pair)] for b in segment.blocks],
    }
