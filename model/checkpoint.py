"""Lazy reading of checkpoint folders, one tensor at a time.

Only safetensors and JSON are read, so nothing is ever unpickled. Several namings of tensors exist,
such as `visual.*`, `model.layers.*` (as published on the hub) and `model.visual.*`,
`model.language_model.layers.*` (written by newer libraries). The first is canonical here, and the
names of other families are converted to it by `PREFIXES`; `source_name` returns the file's name.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..common.lazy_tensor import STORED_DTYPES, LazyTensor
from .stored_files import damaged_file_error, is_packed, open_file
from .weight_files import INDEX_FILE, WeightFiles, find_weights

COPY_CHUNK = 2**26  # bytes
MAPPED_BYTES = 2**24
"""Bytes that are read before files are mapped anew: pages count as resident until then."""
ADAPTER_NAME_PARTS = (".lora_", "base_model.model.")  # in tensor names written by PEFT

logger = logging.getLogger(__name__)

PREFIXES = {
    "model.visual.": "visual.",
    "model.language_model.": "model.",
    # Qwen-VL of 2023
    "transformer.h.": "model.layers.",
    "transformer.wte.": "model.embed_tokens.",
    "transformer.ln_f.": "model.norm.",
    "transformer.visual.transformer.resblocks.": "visual.blocks.",
    "transformer.visual.attn_pool.": "visual.merger.",
    "transformer.visual.ln_post.": "visual.merger.ln_post.",
    "transformer.visual.proj": "visual.merger.proj",
    "transformer.visual.": "visual.patch_input.",
    # LLaVA: `language_model.model.` in published files, `model.language_model.` in newer ones.
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    **{
        f"{root}{start}": canonical
        for root in ("", "model.")
        for start, canonical in (
            ("vision_tower.vision_model.", "visual."),
            ("vision_tower.", "visual."),
            ("multi_modal_projector.", "visual.multi_modal_projector."),
        )
    },
}
"""Starts of the names in files and of canonical names; the first that a name starts with counts."""


def canonical_name(name: str) -> str:
    """Convert a tensor name of any naming to the canonical one.

    >>> canonical_name("model.language_model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> canonical_name("model.visual.merger.ln_q.weight")
    'visual.merger.ln_q.weight'
    """
    for prefix, canonical in PREFIXES.items():
        if name.startswith(prefix):
            return canonical + name.removeprefix(prefix)
    return name


def module_name(name: str) -> str:
    """Convert a canonical name to that of the newer generation, as modules of transformers have it.

    >>> module_name("model.layers.0.mlp.up_proj")
    'model.language_model.layers.0.mlp.up_proj'
    """
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model."):
        return "model.language_model." + name.removeprefix("model.")
    return name


FileState = tuple[int, int, int]
"""Inode, bytes and time of the last change of a file."""


class CheckpointReader:
    """Names, shapes and tensors of a checkpoint folder; a tensor is read on access.

    All names are canonical. Weight files that are present but not used are logged as a warning.

    Args:
        folder: a single-file (`model.safetensors`) or sharded (index) checkpoint.

    Raises:
        FileNotFoundError: there are no weights, or a shard named by the index is missing.
        ValueError: see `find_weights`; or a file is damaged or contains an adapter, a tensor is
            stored twice, or the index names a tensor that its shard lacks.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._handles: dict[str, Any] = {}
        self._mapped: dict[str, tuple[Any, FileState]] = {}
        self._mapped_bytes = 0
        self._files: dict[str, str] = {}
        self._sources: dict[str, str] = {}
        weights = find_weights(self.folder)
        for message in weights.warnings():
            _warn(message)
        for source, file in self._listed(weights):
            self._add(source, file)

    def names(self) -> list[str]:
        """Return all tensor names in the order of the index or file."""
        return list(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def source_name(self, name: str) -> str:
        """Return a tensor's name in the checkpoint's files.

        Raises:
            ValueError: there is no such tensor.
        """
        if name not in self._sources:
            raise ValueError(
                f"{self.folder}: no tensor {name!r}; the checkpoint is incomplete or of another "
                "model than its config.json says"
            )
        return self._sources[name]

    def canonical(self) -> dict[str, str]:
        """Map the source names of all tensors to canonical names."""
        return {source: name for name, source in self._sources.items()}

    def file(self, name: str) -> str:
        """Return the name of the file that contains a tensor."""
        return self._location(name)[0]

    def tensor(self, name: str) -> Tensor:
        """Read one tensor as stored, on the CPU; it may be a view of the memory-mapped file.

        Raises:
            ValueError: there is no such tensor, or its bytes cannot be read.
        """
        file, source = self._location(name)
        return self._read(file, lambda opened: opened.get_tensor(source))

    def copy(self, name: str) -> Tensor:
        """Copy one tensor as stored into its own memory, on the CPU.

        Unlike a view of the memory-mapped file, a copy stays valid if another process truncates the
        file. The copy proceeds in chunks of rows, so that a large tensor is not resident twice.

        Raises:
            ValueError: see `tensor`.
        """
        shape = self.shape(name)
        copy = torch.empty(shape, dtype=self.dtype(name))
        rows = max(1, COPY_CHUNK * len(copy) // max(1, copy.nbytes)) if shape else 1
        if not shape or len(copy) <= rows:
            return copy.copy_(self.tensor(name))
        file, source = self._location(name)
        for begin in range(0, len(copy), rows):
            chunk = slice(begin, begin + rows)
            copy[chunk] = self._read(file, _rows(source, chunk))
        return copy

    def first_rows(self, name: str, count: int) -> Tensor:
        """Copy at most `count` rows of one tensor of at least one dimension, on the CPU.

        Raises:
            ValueError: see `tensor`.
        """
        file, source = self._location(name)
        return self._read(file, _rows(source, slice(count)))

    def lazy(self, name: str) -> LazyTensor:
        """Return one tensor as stored, to be read when it is serialized."""
        return LazyTensor(self.dtype(name), self.shape(name), lambda: self.tensor(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape without reading the tensor."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's stored dtype without reading the tensor.

        Raises:
            ValueError: the dtype is not supported.
        """
        stored = self._slice(name).get_dtype()
        if stored not in STORED_DTYPES:
            raise ValueError(
                f"{self.folder}: tensor {name!r} is stored as {stored}; allowed: "
                f"{', '.join(STORED_DTYPES)}"
            )
        return STORED_DTYPES[stored]

    def nbytes(self, name: str) -> int:
        """Return the bytes of a tensor without reading the tensor."""
        return math.prod(self.shape(name)) * self.dtype(name).itemsize

    def _slice(self, name: str) -> Any:
        file, source = self._location(name)
        return self._open(file).get_slice(source)

    def _location(self, name: str) -> tuple[str, str]:
        """Return the file that contains a tensor, and the tensor's name there."""
        source = self.source_name(name)
        return self._files[name], source

    def _open(self, file: str) -> Any:
        if file not in self._handles:
            self._handles[file] = open_file(self.folder / file)
        return self._handles[file]

    def _read(self, file: str, read: Callable[[Any], Tensor]) -> Tensor:
        """Read from a file; after `MAPPED_BYTES` the next reads map files anew."""
        try:
            value = read(self._map(file))
        except SafetensorError as error:
            raise damaged_file_error(self.folder / file, error) from None
        self._mapped_bytes += value.nbytes
        if self._mapped_bytes > MAPPED_BYTES:
            self._mapped.clear()
            self._mapped_bytes = 0
        return value

    def _map(self, file: str) -> Any:
        """Open a file for reading tensors, again if it was changed since.

        Reading pages that another process has cut off would end this one.
        """
        path = self.folder / file
        if is_packed(path):
            return self._open(file)
        state = _file_state(path)
        opened, seen = self._mapped.get(file, (None, None))
        if opened is None or seen != state:
            opened = open_file(path)
            self._mapped[file] = opened, state
        return opened

    def _listed(self, weights: WeightFiles) -> Iterator[tuple[str, str]]:
        """Yield source name and file of every tensor in the order of the index or file."""
        stored = {file: dict.fromkeys(self._open(file).keys()) for file in weights.files}
        weight_map = weights.weight_map or {}
        for source, file in weight_map.items():
            if source not in stored[file]:
                raise ValueError(
                    f"{self.folder}: {INDEX_FILE} says that {file!r} holds {source!r}, "
                    "and it does not; fetch the checkpoint again"
                )
            yield source, file
        for file, sources in stored.items():  # an index can be incomplete
            yield from ((source, file) for source in sources if weight_map.get(source) != file)

    def _add(self, source: str, file: str) -> None:
        if any(part in source for part in ADAPTER_NAME_PARTS):
            raise ValueError(
                f"{self.folder}: {file} holds {source!r}, which belongs to an adapter that is not "
                "merged; merge it into its base model first"
            )
        name = canonical_name(source)
        if name not in self._sources:
            self._sources[name], self._files[name] = source, file
        elif self._sources[name] == source:
            raise ValueError(
                f"{self.folder}: {source!r} is in {self._files[name]} and in {file}; the shards "
                "are of different saves; fetch the checkpoint again"
            )
        else:
            raise ValueError(
                f"{self.folder}: {self._sources[name]!r} and {source!r} are the same tensor "
                "under two namings; keep one"
            )


def _rows(source: str, rows: slice) -> Callable[[Any], Tensor]:
    """Return a function that reads rows of a tensor from an open file."""
    return lambda opened: opened.get_slice(source)[rows]


def _file_state(path: Path) -> FileState:
    stat = path.stat()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


@cache
def _warn(message: str) -> None:
    """Log a warning once, however often a folder is opened."""
    logger.warning("%s", message)


def lazy_tensors(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of one safetensors file, to be read when they are serialized.

    Raises:
        ValueError: the file is damaged.
    """
    file = open_file(path)

    def lazy(name: str) -> LazyTensor:
        header = file.get_slice(name)
        dtype, shape = STORED_DTYPES[header.get_dtype()], tuple(header.get_shape())
        return LazyTensor(dtype, shape, lambda: open_file(path).get_tensor(name))

    return {name: lazy(name) for name in file.keys()}
