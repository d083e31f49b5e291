"""Reading checkpoint folders, one tensor at a time.

Only safetensors and JSON are read, so nothing is ever unpickled. Two generations of tensor names
exist: `visual.*`, `model.layers.*` (as published on the hub) and `model.visual.*`,
`model.language_model.layers.*` (written by newer libraries). Everything here speaks the first;
`source_name` gives back what the file says.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .config import read_json
from .stored import STORED_DTYPES, LaterTensor

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
COPIED_AT_ONCE = 2**26  # bytes
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


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

    Args:
        folder: A single-file (`model.safetensors`) or sharded (index) checkpoint.

    Raises:
        FileNotFoundError: There are no weights, or a shard that the index names is missing.
        ValueError: The weights are pickled, a file is damaged, the index leaves the folder or
            names a tensor that its shard lacks.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._handles: dict[str, Any] = {}
        self._files: dict[str, str] = {}
        self._sources: dict[str, str] = {}
        for source, file in self._locate():
            name = canonical_name(source)
            if name in self._sources:
                raise ValueError(
                    f"{self.folder}: {self._sources[name]!r} and {source!r} are the same tensor "
                    "under two namings; keep one"
                )
            self._sources[name], self._files[name] = source, file

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
            value: Tensor = _safe_open(path).get_tensor(source)
        except SafetensorError as error:
            raise _damaged(path, error) from None
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
                found[part] = _safe_open(path).get_slice(source)[part]
            except SafetensorError as error:
                raise _damaged(path, error) from None
        return found

    def later(self, name: str) -> LaterTensor:
        """One tensor as stored, to be read when it is needed."""
        return LaterTensor(self.dtype(name), self.shape(name), lambda: self.tensor(name))

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
            path = self.folder / file
            if not path.is_file():
                raise FileNotFoundError(
                    f"{self.folder}: shard {file!r} named by {INDEX_FILE} is missing; "
                    "fetch the checkpoint again"
                )
            self._handles[file] = _safe_open(path)
        return self._handles[file]

    def _locate(self) -> Iterable[tuple[str, str]]:
        if (self.folder / INDEX_FILE).is_file():
            return self._indexed()
        singles = sorted(path.name for path in self.folder.glob("*.safetensors"))
        if SINGLE_FILE in singles:
            singles = [SINGLE_FILE]
        if len(singles) == 1:
            return [(name, singles[0]) for name in self._open(singles[0]).keys()]
        if singles:
            raise ValueError(
                f"{self.folder}: {len(singles)} safetensors files but no {INDEX_FILE}; "
                "fetch the checkpoint again"
            )
        pickled = sorted(path.name for glob in PICKLED for path in self.folder.glob(glob))
        if pickled:
            raise ValueError(
                f"{self.folder}: holds only pickled weights ({pickled[0]}), which can run code "
                "when read; allowed: safetensors; convert the checkpoint first"
            )
        raise FileNotFoundError(
            f"{self.folder}: no {SINGLE_FILE} and no {INDEX_FILE}; "
            "give a folder with a complete checkpoint"
        )

    def _indexed(self) -> Iterable[tuple[str, str]]:
        weight_map = read_json(self.folder / INDEX_FILE).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(
                f"{self.folder / INDEX_FILE}: no weight_map; fetch the checkpoint again"
            )
        stored: dict[str, set[str]] = {}
        for source, file in weight_map.items():
            if file not in stored:
                _check_inside(self.folder, file)
                stored[file] = set(self._open(file).keys())
            if source not in stored[file]:
                raise ValueError(
                    f"{self.folder}: {INDEX_FILE} says that {file!r} holds {source!r}, "
                    "and it does not; fetch the checkpoint again"
                )
        return list(weight_map.items())


def stored_tensors(path: Path) -> dict[str, LaterTensor]:
    """What one safetensors file holds, to be read when it is needed.

    Raises:
        ValueError: it is damaged.
    """
    file = _safe_open(path)

    def later(name: str) -> LaterTensor:
        part = file.get_slice(name)
        dtype, shape = STORED_DTYPES[part.get_dtype()], tuple(part.get_shape())
        return LaterTensor(dtype, shape, lambda: _safe_open(path).get_tensor(name))

    return {name: later(name) for name in file.keys()}


def _check_inside(folder: Path, file: object) -> None:
    # Lexical on purpose: hub caches are folders of links that point elsewhere.
    plain = isinstance(file, str) and file and "\0" not in file
    if plain:
        parts = (PurePosixPath(str(file)), PureWindowsPath(str(file)))
        plain = not any(path.is_absolute() or path.drive or ".." in path.parts for path in parts)
    if not plain:
        raise ValueError(
            f"{folder}: {INDEX_FILE} names the file {file!r}; allowed: plain file names "
            "inside the folder; do not use this checkpoint"
        )


def _safe_open(path: Path) -> Any:
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ValueError:
    size = path.stat().st_size
    return ValueError(
        f"{path}: truncated or not a safetensors file ({size} bytes; {error}); fetch it again"
    )
