"""The header of a safetensors file, read without its tensors.

https://huggingface.co/docs/safetensors, "Format": eight bytes of header length, a JSON header, and
the tensors, without gaps, at the offsets in the header.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated

from ...common.validation import Integer, parse, validated

LENGTH = 8
"""Bytes of the header's length."""
LARGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library."""
METADATA = "__metadata__"
DTYPE_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}

Count = Annotated[int, Integer(0)]


@dataclass(frozen=True)
class TensorInfo:
    """Dtype, shape and position of one tensor; offsets count from the begin of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@validated
class _Entry:
    dtype: str
    shape: Sequence[Count]
    data_offsets: tuple[Count, Count]


def header_length(start: bytes, file_bytes: int) -> int:
    """Return the bytes of length and header together.

    Args:
        start: the first bytes of the file.
        file_bytes: its size.

    Raises:
        ValueError: this is not the begin of a safetensors file.
    """
    length = int.from_bytes(start[:LENGTH], "little")
    if len(start) < LENGTH or length > min(LARGEST_HEADER, file_bytes - LENGTH):
        raise ValueError(f"a header of {length} bytes in a file of {file_bytes}")
    return LENGTH + length


def parse_header(header: bytes, file_bytes: int) -> list[TensorInfo]:
    """Return the tensors of a file in the order of their offsets.

    Args:
        header: length and header.
        file_bytes: size of the file.

    Raises:
        ValueError: the header is damaged, or its tensors are not the rest of the file.
    """
    try:
        entries = json.loads(header[LENGTH:].decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the header is not valid JSON: {error}") from None
    if not isinstance(entries, Mapping):
        raise ValueError("the header is not a JSON object")
    tensors = [
        _tensor(name, entry, len(header)) for name, entry in entries.items() if name != METADATA
    ]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    end = len(header)
    for tensor in tensors:
        if tensor.begin != end:
            raise ValueError(f"tensor {tensor.name!r} begins at {tensor.begin}; expected {end}")
        end = tensor.end
    if end != file_bytes:
        raise ValueError(f"the tensors end at {end} in a file of {file_bytes} bytes")
    return tensors


def _tensor(name: str, raw: object, base: int) -> TensorInfo:
    entry = parse(_Entry, raw, f"tensor {name!r}")
    begin, end = entry.data_offsets
    bits = DTYPE_BITS.get(entry.dtype)
    if bits is None:
        raise ValueError(f"tensor {name!r} is stored as {entry.dtype!r}, an unknown dtype")
    if prod(entry.shape) * bits != 8 * (end - begin):
        raise ValueError(
            f"tensor {name!r}, {entry.dtype} {list(entry.shape)}, has {end - begin} bytes"
        )
    return TensorInfo(name, entry.dtype, tuple(entry.shape), base + begin, base + end)
