"""Read tensors from a container, with the part of `safetensors.safe_open` that vlpress uses."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...common.lazy_tensor import STORED_DTYPES
from ...common.ordered_map import default_threads
from .container import Index, Segment, damaged, read_blocks, read_header, read_index
from .header import TensorInfo
from .layouts import Bytes


@dataclass(frozen=True)
class _Contents:
    index: Index
    tensors: Mapping[str, TensorInfo]


class PackedFile:
    """Tensors of a container, each decoded when it is read.

    Args:
        path: the container.

    Raises:
        ValueError: it is damaged, or of another version.
        OSError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._contents = _open(path)

    def keys(self) -> list[str]:
        """Return the names of the tensors, sorted."""
        return sorted(self._contents.tensors)

    def segment(self, name: str) -> Segment:
        """Return the blocks of a tensor."""
        return self._contents.index.by_name[name]

    def get_slice(self, name: str) -> PackedSlice:
        """Return a tensor of which rows can be read."""
        return PackedSlice(self._path, self.segment(name), self._contents.tensors[name])

    def get_tensor(self, name: str) -> Tensor:
        """Read one tensor.

        Raises:
            ValueError: it is damaged, or of a dtype that is not supported.
        """
        return self.get_slice(name).read()


class PackedSlice:
    """One tensor of a container."""

    def __init__(self, path: Path, segment: Segment, info: TensorInfo) -> None:
        self._path, self._segment, self._info = path, segment, info

    def get_shape(self) -> list[int]:
        """Return its shape."""
        return list(self._info.shape)

    def get_dtype(self) -> str:
        """Return the name of its dtype in safetensors files."""
        return self._info.dtype

    def read(self) -> Tensor:
        """Read the tensor, and compare it with its digest.

        Raises:
            ValueError: see `PackedFile.get_tensor`.
        """
        values = self._read(0, self._segment.size)
        if hashlib.sha256(values.data).hexdigest() != self._segment.sha256:
            raise damaged(self._path, f"tensor {self._info.name!r} has another sha256")
        return self._tensor(values, self._info.shape)

    def __getitem__(self, rows: slice) -> Tensor:
        """Read consecutive rows; only the blocks that hold them are decoded.

        Raises:
            ValueError: see `PackedFile.get_tensor`.
        """
        count, *rest = self._info.shape
        begin, end, step = rows.indices(count)
        if step != 1:
            raise ValueError(f"rows with a step of {step}; allowed: 1")
        end = max(begin, end)
        row = self._segment.size // count if count else 0
        return self._tensor(self._read(begin * row, end * row), (end - begin, *rest))

    def _read(self, begin: int, end: int) -> Bytes:
        """Decode the bytes from `begin` to `end` of the tensor."""
        values, size = np.empty(end - begin, np.uint8), self._segment.block
        blocks = range(begin // size, -(-end // size)) if end > begin else range(0)
        with self._path.open("rb") as file:
            decoded = read_blocks(file, self._path, self._segment, blocks, default_threads())
            for number, block in zip(blocks, decoded, strict=True):
                first = number * size
                source = block[max(0, begin - first) : end - first]
                target = max(0, first - begin)
                values[target : target + len(source)] = source
        return values

    def _tensor(self, values: Bytes, shape: tuple[int, ...]) -> Tensor:
        stored = self._info.dtype
        if stored not in STORED_DTYPES:
            raise ValueError(
                f"{self._path}: tensor {self._info.name!r} is stored as {stored}; allowed: "
                f"{', '.join(STORED_DTYPES)}"
            )
        if not prod(shape):
            return torch.empty(shape, dtype=STORED_DTYPES[stored])
        return torch.from_numpy(values).view(STORED_DTYPES[stored]).reshape(shape)


def tensor_sizes(path: Path) -> Iterator[tuple[TensorInfo, int]]:
    """Yield each tensor of a container with its bytes in it, see `PackedFile`."""
    contents = _open(path)
    for name, info in contents.tensors.items():
        yield info, contents.index.by_name[name].coded


def stored_index(path: Path) -> Index:
    """Return the index of a container, see `PackedFile`."""
    return _open(path).index


def _open(path: Path) -> _Contents:
    with path.open("rb") as file:
        index = read_index(file, path)
        tensors = read_header(file, path, index)
    return _Contents(index, {tensor.name: tensor for tensor in tensors})
