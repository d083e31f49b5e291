"""Reader of GGUF files with tensors of the types F32, F16, Q4_1 and Q8_0.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; blocks of quantized types:
`dequantize_row_q4_1` and `dequantize_row_q8_0` of ggml's ggml-quants.c.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 32
"""Weights per block of Q4_1 and Q8_0."""
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_TYPES = {0: ("F32", 1, 4), 1: ("F16", 1, 2), 3: ("Q4_1", BLOCK, 20), 8: ("Q8_0", BLOCK, 34)}
"""Name, weights per block and bytes per block by type number."""


@dataclass(frozen=True)
class GGUF:
    """Metadata of a file, and its tensors, which are read on demand."""

    metadata: dict[str, Any]
    types: dict[str, str]
    """Name of the type of each tensor."""
    _data: mmap.mmap
    _places: dict[str, tuple[int, tuple[int, ...]]]

    @classmethod
    def open(cls, path: Path) -> GGUF:
        """Read the header of a file of version 2 or 3.

        Raises:
            ValueError: another kind of file, another version, or an unsupported tensor type.
        """
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        cursor = _Cursor(data)
        magic, version = data[:4], cursor.skip(4).scalar("I")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(
                f"{path}: starts with {magic!r}, version {version}; allowed: GGUF 2, 3"
            )
        tensors, entries = cursor.scalar("Q"), cursor.scalar("Q")
        metadata = {cursor.string(): cursor.value(cursor.scalar("I")) for _ in range(entries)}
        types, places = {}, {}
        for _ in range(tensors):
            name, dimensions = cursor.string(), cursor.scalar("I")
            shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
            number, offset = cursor.scalar("I"), cursor.scalar("Q")
            if number not in _TYPES:
                known = ", ".join(name for name, _, _ in _TYPES.values())
                raise ValueError(f"{path}: {name} has type {number}; allowed: {known}")
            types[name], places[name] = _TYPES[number][0], (offset, shape)
        alignment = int(metadata.get("general.alignment", 32))
        start = -(-cursor.position // alignment) * alignment
        absolute = {name: (start + offset, shape) for name, (offset, shape) in places.items()}
        return cls(metadata, types, data, absolute)

    def tensor(self, name: str) -> Tensor:
        """Read and dequantize a tensor, to float32.

        Raises:
            KeyError: there is no such tensor.
        """
        offset, shape = self._places[name]
        kind = self.types[name]
        per_block, size = next((n, size) for key, n, size in _TYPES.values() if key == kind)
        end = offset + prod(shape) // per_block * size
        return dequantize(self._data[offset:end], kind).reshape(shape)


def dequantize(data: bytes, kind: str) -> Tensor:
    """Dequantize whole blocks to float32 `[weights]`.

    A block of Q4_1 is a scale d and a minimum m (fp16), then 16 bytes with weights 0 to 15 in the
    low and 16 to 31 in the high halves; a weight is `d * q + m`. A block of Q8_0 is a scale d
    (fp16), then 32 int8; a weight is `d * q`.

    Args:
        data: the blocks.
        kind: F32, F16, Q4_1 or Q8_0.
    """
    raw = np.frombuffer(data, dtype=np.uint8)
    if kind in ("F32", "F16"):
        return torch.from_numpy(raw.view(np.float32 if kind == "F32" else np.float16).astype("f4"))
    size = next(size for name, _, size in _TYPES.values() if name == kind)
    blocks = raw.reshape(-1, size)
    if kind == "Q8_0":
        scale = blocks[:, :2].copy().view(np.float16).astype("f4")
        return torch.from_numpy((scale * blocks[:, 2:].view(np.int8)).reshape(-1))
    scale, minimum = blocks[:, :4].copy().view(np.float16).astype("f4").T[:, :, None]
    packed = blocks[:, 4:]
    integers = np.concatenate([packed & 15, packed >> 4], axis=1).astype("f4")
    return torch.from_numpy((scale * integers + minimum).reshape(-1))


class _Cursor:
    """Sequential reader of the header's little-endian values."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 0

    def skip(self, size: int) -> _Cursor:
        self.position += size
        return self

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.position)
        self.position += struct.calcsize(f"<{code}")
        return value

    def string(self) -> str:
        length = self.scalar("Q")
        text = self.data[self.position : self.position + length].decode()
        self.position += length
        return text

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, count = self.scalar("I"), self.scalar("Q")
            return [self.value(inner) for _ in range(count)]
        return self.scalar(_SCALARS[kind])
