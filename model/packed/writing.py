"""Pack a safetensors file into a container, and unpack it; memory is bounded by blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...common.ordered_map import ordered_map
from .choosing import choose_layout
from .container import (
    BLOCK,
    HEADER,
    MAGIC,
    START,
    TRAILER,
    VERSION,
    Block,
    Index,
    Segment,
    damaged,
    encode_block,
    read_blocks,
    read_header,
    read_index,
)
from .header import LENGTH, TensorInfo, header_length, parse_header
from .layouts import Layout

OnBytes = Callable[[int], None]
"""Called with the bytes of the safetensors file that have been processed since the last call."""


@dataclass(frozen=True)
class _Source:
    """An open safetensors file, and the digest of what has been read of it."""

    file: BinaryIO
    path: Path
    digest: hashlib._Hash

    def read(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) != size:
            raise ValueError(f"{self.path}: changed while it was read; pack it again")
        self.digest.update(data)
        return data


def pack_file(
    source: Path, target: Path, *, threads: int, on_bytes: OnBytes, block: int = BLOCK
) -> Index:
    """Pack one safetensors file.

    The container depends on the bytes of the file and on the version of zstandard, not on the
    number of threads.

    Args:
        source: safetensors file.
        target: container to create.
        threads: that code blocks.
        on_bytes: reports progress.
        block: largest size of a block in bytes of the file, at most `BLOCK`.

    Returns:
        Content of the container.

    Raises:
        ValueError: the source is not a safetensors file, or changes meanwhile.
        OSError: a file cannot be read or written.
    """
    size = source.stat().st_size
    with source.open("rb") as file, target.open("wb") as out:
        tensors, header = _read_header(file, size, source)
        file.seek(0)
        opened = _Source(file, source, hashlib.sha256())
        out.write(START.pack(MAGIC, VERSION, 0))
        info = TensorInfo(HEADER, "U8", (header,), 0, header)
        segments = [
            _pack_segment(opened, each, out, block, threads, on_bytes) for each in (info, *tensors)
        ]
        if file.read(1):
            raise ValueError(f"{source}: changed while it was read; pack it again")
        index = Index(size, opened.digest.hexdigest(), segments)
        offset, coded = out.tell(), index.to_bytes()
        out.write(coded)
        out.write(TRAILER.pack(offset, len(coded), hashlib.sha256(coded).digest(), MAGIC))
    return index


def unpack_file(source: Path, target: Path, *, threads: int, on_bytes: OnBytes) -> Index:
    """Unpack one container into the safetensors file it was made from, byte for byte.

    Args:
        source: container.
        target: safetensors file to create; incomplete if an error is raised.
        threads: that decode blocks.
        on_bytes: reports progress.

    Returns:
        Content of the container.

    Raises:
        ValueError: the container is damaged.
        OSError: a file cannot be read or written.
    """
    digest = hashlib.sha256()
    with source.open("rb") as file, target.open("wb") as out:
        index = read_index(file, source)
        read_header(file, source, index)
        for segment in index.segments:
            blocks, of_segment = range(len(segment.blocks)), hashlib.sha256()
            for block in read_blocks(file, source, segment, blocks, threads):
                out.write(block.data)
                digest.update(block.data)
                of_segment.update(block.data)
                on_bytes(len(block))
            if of_segment.hexdigest() != segment.sha256:
                raise damaged(source, f"tensor {segment.name!r} has another sha256")
    if digest.hexdigest() != index.sha256:
        raise damaged(source, "the unpacked file has another sha256 than the packed one")
    return index


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[list[TensorInfo], int]:
    try:
        length = header_length(file.read(LENGTH), size)
        file.seek(0)
        tensors = parse_header(file.read(length), size)
        if any(tensor.name == HEADER for tensor in tensors):
            raise ValueError("a tensor has an empty name")
    except ValueError as error:
        raise ValueError(
            f"{path}: truncated or not a safetensors file ({size} bytes; {error}); fetch it again"
        ) from None
    return tensors, length


def _pack_segment(
    source: _Source,
    info: TensorInfo,
    out: BinaryIO,
    largest_block: int,
    threads: int,
    on_bytes: OnBytes,
) -> Segment:
    """Pack the next tensor of the source, or its header."""
    size = info.end - info.begin
    layout = _layout(source, info, largest_block)
    block = largest_block // layout.unit * layout.unit
    digest = hashlib.sha256()

    def load() -> Iterator[bytes]:
        for begin in range(0, size, block):
            data = source.read(min(block, size - begin))
            digest.update(data)
            yield data

    blocks: list[Block] = []
    coded = ordered_map(lambda data: encode_block(layout, data), load(), threads)
    for crc, streams in coded:
        offset, begin = out.tell(), len(blocks) * block
        for data, _ in streams:
            out.write(data)
        sizes = tuple((len(data), length) for data, length in streams)
        blocks.append(Block(crc, sizes, offset, min(block, size - begin)))
        on_bytes(blocks[-1].size)
    return Segment(info.name, size, layout, block, digest.hexdigest(), blocks)


def _layout(source: _Source, info: TensorInfo, largest_block: int) -> Layout:
    head = source.file.read(min(info.end - info.begin, BLOCK))
    source.file.seek(info.begin)
    return choose_layout(info.dtype, info.shape, np.frombuffer(head, np.uint8), largest_block)
