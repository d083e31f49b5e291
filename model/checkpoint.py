"""Reading checkpoint folders, one tensor at a time.

Only safetensors and JSON are read, so nothing is ever unpickled. Two generations of tensor names
exist: `visual.*`, `model.layers.*` (as published on the hub) and `model.visual.*`,
`model.language_model.layers.*` (written by newer libraries). Everything here speaks the first;
`source_name` gives back what the file says.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..common.lazy_tensor import STORED_DTYPES, LazyTensor
from .weight_files import INDEX_FILE, WeightFiles, damaged, find_weights, open_file

COPIED_AT_ONCE = 2**26  # bytes
ADAPTER_PARTS = (".lora_", "base_model.model.")  # in the names that PEFT gives

logger = logging.getLogger(__name__)


def canonical_name(name: str) -> str:
    """The hub's classic name of a tensor of either naming generation.

    >>> canonical_name("model.language_model.layers.0.mlp.up_proj.weight")
    'model.layers.0.mlp.up_proj.weight'
    >>> canonical_name("model.visual.merger.ln_q.weight")
    'visual.merger.ln_q.weight'
    """
    if name.startswith("model.visual."):
        return name.removeprefix("model.")
    if name.startswith("model.language_model."):
        return "model." + name.removeprefix("model.language_model.")
    return name


class CheckpointReader:
    """Names, shapes and tensors of a checkpoint folder; tensors are read when asked for.

    Names are canonical throughout.

    Weights that lie in the folder and are not read are named in a warning.

    Args:
        folder: A single-file (`model.safetensors`) or sharded (index) checkpoint.

    Raises:
        FileNotFoundError: There are no weights, or a shard that the index names is missing.
        ValueError: as `find_weights`; or a file is damaged or holds an adapter, a tensor is there
            twice, or the index names one that its shard lacks.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._handles: dict[str, Any] = {}
        self._files: dict[str, str] = {}
        self._sources: dict[str, str] = {}
        weights = find_weights(self.folder)
        for message in weights.warnings():
            _warn(message)
        for source, file in self._listed(weights):
            self._add(source, file)

    def names(self) -> list[str]:
        """All tensor names, in the order of the index or file."""
        return list(self._sources)

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def source_name(self, name: str) -> str:
        """What the checkpoint itself calls a tensor.

        Raises:
            ValueError: There is no such tensor.
        """
        if name not in self._sources:
            raise ValueError(
                f"{self.folder}: no tensor {name!r}; the checkpoint is incomplete or of another "
                "model than its config.json says"
            )
        return self._sources[name]

    def canonical(self) -> dict[str, str]:
        """Source name to canonical name, for all tensors."""
        return {source: name for name, source in self._sources.items()}

    def file(self, name: str) -> str:
        """Name of the file that holds a tensor."""
        self.source_name(name)
        return self._files[name]

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, as stored, on the CPU; it may be a view of the file.

        Raises:
            ValueError: There is no such tensor, or its bytes cannot be read.
        """
        source, path = self.source_name(name), self.folder / self._files[name]
        try:
            # Opened anew: what was read of a file counts as held for as long as that is open.
            value: Tensor = open_file(path).get_tensor(source)
        except SafetensorError as error:
            raise damaged(path, error) from None
        return value

    def copy(self, name: str) -> Tensor:
        """Read one tensor into memory of its own, as stored, on the CPU.

        What was read stays what it is when someone shortens the file, and no more of a large one
        is held beside it than a part.

        Raises:
            ValueError: as `tensor`.
        """
        shape = self.shape(name)
        found = torch.empty(shape, dtype=self.dtype(name))
        rows = max(1, COPIED_AT_ONCE * len(found) // max(1, found.nbytes)) if shape else 1
        if not shape or len(found) <= rows:
            return found.copy_(self.tensor(name))
        source, path = self.source_name(name), self.folder / self._files[name]
        for begin in range(0, len(found), rows):
            part = slice(begin, begin + rows)
            try:
                found[part] = open_file(path).get_slice(source)[part]
            except SafetensorError as error:
                raise damaged(path, error) from None
        return found

    def later(self, name: str) -> LazyTensor:
        """One tensor as stored, to be read when it is needed."""
        return LazyTensor(self.dtype(name), self.shape(name), lambda: self.tensor(name))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Stored data type of a tensor, without reading it."""
        stored = self._slice(name).get_dtype()
        if stored not in STORED_DTYPES:
            raise ValueError(
                f"{self.folder}: tensor {name!r} is stored as {stored}; allowed: "
                f"{', '.join(STORED_DTYPES)}"
            )
        return STORED_DTYPES[stored]

    def _slice(self, name: str) -> Any:
        source = self.source_name(name)
        return self._open(self._files[name]).get_slice(source)

    def _open(self, file: str) -> Any:
        if file not in self._handles:
            self._handles[file] = open_file(self.folder / file)
        return self._handles[file]

    def _listed(self, weights: WeightFiles) -> Iterator[tuple[str, str]]:
        """Source name and file of every tensor, in the order of the index or file."""
        stored = {file: dict.fromkeys(self._open(file).keys()) for file in weights.files}
        named = weights.weight_map or {}
        for source, file in named.items():
            if source not in stored[file]:
                raise ValueError(
                    f"{self.folder}: {INDEX_FILE} says that {file!r} holds {source!r}, "
                    "and it does not; fetch the checkpoint again"
                )
            yield source, file
        for file, sources in stored.items():  # an index may leave tensors out
            yield from ((source, file) for source in sources if named.get(source) != file)

    def _add(self, source: str, file: str) -> None:
        if any(part in source for part in ADAPTER_PARTS):
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


@cache
def _warn(message: str) -> None:
    """Log a warning once, however often a folder is opened."""
    logger.warning("%s", message)


def stored_tensors(path: Path) -> dict[str, LazyTensor]:
    """What one safetensors file holds, to be read when it is needed.

    Raises:
        ValueError: it is damaged.
    """
    file = open_file(path)

    def later(name: str) -> LazyTensor:
        part = file.get_slice(name)
        dtype, shape = STORED_DTYPES[part.get_dtype()], tuple(part.get_shape())
        return LazyTensor(dtype, shape, lambda: open_file(path).get_tensor(name))

    return {name: later(name) for name in file.keys()}
