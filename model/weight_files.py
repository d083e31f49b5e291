"""Selection of the files of a checkpoint folder that contain the model's weights.

A folder can contain more than one set of weights: the shards of the base model and a fine-tune
saved as one file, an adapter, a copy in another format. The precedence is that of transformers:
`model.safetensors` before the index, and only files that the index names. An index that names
`model.safetensors` belongs to it: libraries that load a model without its draft module save that
module's tensors in a second file. Weights that are not used are reported in a warning and are not
part of the checkpoint's digest.

In a packed folder a container takes the place of each safetensors file, and goes by its name here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import read_checkpoint_json
from .stored_files import (
    MANIFEST,
    PACKED,
    SUFFIX,
    file_digest,
    file_size,
    is_inside,
    is_packed,
    open_file,
    packed_path,
    unpacked_name,
)

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
DOCUMENTS = (".md",)
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
# Files that a trainer saves in the same folder and in the same format as weights.
TRAINER_STATE = re.compile(r"(training_args|optimizer|scheduler|scaler|rng_state).*|.*_states?\.pt")
PART = re.compile(r".*-(\d+)-of-(\d+)\.safetensors", re.IGNORECASE)


@dataclass(frozen=True)
class WeightFiles:
    """The selected set of weights.

    Attributes:
        folder: the checkpoint folder.
        files: names of the files to read.
        weight_map: tensor name to file name, from the index; None for a single file.
        unread: names of other files in the folder with weights or an index of weights.
    """

    folder: Path
    files: tuple[str, ...]
    weight_map: Mapping[str, str] | None
    unread: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Total size of the files to read, unpacked."""
        return sum(file_size(self.folder / name) for name in self.files)

    def warnings(self) -> list[str]:
        """Return a one-line warning each for a second set of weights and for an adapter."""
        messages = []
        adapters = [name for name in self.unread if name in ADAPTER_FILES]
        if adapters:
            messages.append(
                f"{self.folder}: the adapter {adapters[0]} ({_base_model(self.folder)}) is not "
                "applied; merge it into the model, or delete it if it is merged already"
            )
        others = [name for name in self.unread if name not in adapters]
        if others:
            sharded = self.weight_map is not None
            selected = f"the {_count(self.files)} of {INDEX_FILE}" if sharded else self.files[0]
            messages.append(
                f"{self.folder}: holds more than one set of weights; reading {selected}, not "
                f"{_listed(others)}; delete the set that is left over"
            )
        return messages


def find_weights(folder: Path) -> WeightFiles:
    """Select the weights of a checkpoint folder.

    Raises:
        FileNotFoundError: there are no weights, or a shard named by the index is missing.
        ValueError: there is only an adapter, the weights are pickled, the choice is ambiguous, or
            the index is unusable.
    """
    refuse_adapter(folder)
    _check_named(folder)
    names = _weights(folder)
    _check_packed(folder, names)
    single, index = _is_there(folder / SINGLE_FILE), _is_there(folder / INDEX_FILE)
    if index and (not single or _is_empty(folder / SINGLE_FILE) or _names_single_file(folder)):
        weight_map = _read_index(folder)
        _check_shards(folder, weight_map, names)
        return _chosen(folder, tuple(dict.fromkeys(weight_map.values())), weight_map, names)
    file = SINGLE_FILE if single else _only_file(folder, names)
    return _chosen(folder, (file,), None, [*names, INDEX_FILE] if index else names)


def unread_weights(folder: Path) -> frozenset[str]:
    """Return the names of unused weight files of a folder; none if it has no usable set."""
    try:
        return frozenset(find_weights(folder).unread)
    except (ValueError, OSError):  # reported when the folder is opened
        return frozenset()


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder that contains an adapter and no model.

    Raises:
        ValueError: it does; the message names the base model if the adapter does.
    """
    marks = [name for name in (*ADAPTER_FILES, ADAPTER_CONFIG) if (folder / name).is_file()]
    if marks and set(_weights(folder)) <= {*ADAPTER_FILES} and not (folder / INDEX_FILE).is_file():
        raise ValueError(
            f"{folder}: this is an adapter ({marks[0]}, {_base_model(folder)}), not a model: merge "
            "it first, and give the folder of the merged model"
        )


def _chosen(
    folder: Path,
    files: tuple[str, ...],
    weight_map: Mapping[str, str] | None,
    names: Iterable[str],
) -> WeightFiles:
    return WeightFiles(folder, files, weight_map, tuple(n for n in names if n not in files))


def _weights(folder: Path) -> list[str]:
    """Names of all files with weights, used or not."""
    names = {unpacked_name(path.name) for path in folder.iterdir() if path.is_file()}
    return sorted(
        name
        for name in names
        if Path(name).suffix.lower() in (SUFFIX, *PICKLED)
        and not TRAINER_STATE.fullmatch(name)
        and not name.startswith(".")
    )


def _check_packed(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        if (folder / name).is_file() and packed_path(folder / name).is_file():
            raise ValueError(
                f"{folder}: holds {name} and, packed, {name}{PACKED}; delete one of them"
            )


def _check_named(folder: Path) -> None:
    """Refuse a config.json that names a weight file, as transformers 5 allows."""
    path = folder / "config.json"
    named = read_checkpoint_json(path).get("transformers_weights") if path.is_file() else None
    if named not in (None, SINGLE_FILE, INDEX_FILE):
        raise ValueError(
            f"{path}: transformers_weights is {named!r}; allowed: {SINGLE_FILE}; rename the file "
            "that holds the weights and remove the entry"
        )


def _is_there(path: Path) -> bool:
    """Whether a file exists.

    Raises:
        FileNotFoundError: it is a dangling link, such as in a hub cache whose blobs were deleted.
    """
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f"{path}: a link to {path.readlink()}, which is missing; fetch the checkpoint again"
        )
    return path.is_file() or is_packed(path)


def _is_empty(path: Path) -> bool:
    """Whether a file contains no tensors; some trainers save one together with the shards."""
    return file_size(path) == 0 or not list(open_file(path).keys())


def _names_single_file(folder: Path) -> bool:
    """Whether the index is one of `model.safetensors` and other files."""
    try:
        weight_map = read_checkpoint_json(folder / INDEX_FILE).get("weight_map")
    except ValueError:  # of another save, as the single file is complete without it
        return False
    return isinstance(weight_map, dict) and SINGLE_FILE in weight_map.values()


def _only_file(folder: Path, names: Sequence[str]) -> str:
    """The only safetensors file of a folder without `model.safetensors` and without an index."""
    files = [n for n in names if n.lower().endswith(SUFFIX) and n not in ADAPTER_FILES]
    if len(files) == 1:
        part = PART.fullmatch(files[0])
        if part and int(part[2]) > 1:
            raise FileNotFoundError(
                f"{folder}: {files[0]} is one of {int(part[2])} shards, the others and "
                f"{INDEX_FILE} are missing; fetch the checkpoint again"
            )
        return files[0]
    if files:
        raise ValueError(
            f"{folder}: {len(files)} safetensors files but no {INDEX_FILE} ({_listed(files)}); "
            "fetch the checkpoint again"
        )
    if pickled := [name for name in names if name not in ADAPTER_FILES]:
        raise ValueError(
            f"{folder}: holds only pickled weights ({pickled[0]}), which can run code "
            "when read; allowed: safetensors; convert the checkpoint first"
        )
    raise FileNotFoundError(
        f"{folder}: no {SINGLE_FILE} and no {INDEX_FILE}; give a folder with a complete checkpoint"
    )


def _read_index(folder: Path) -> dict[str, str]:
    weight_map = read_checkpoint_json(folder / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{folder / INDEX_FILE}: no weight_map; fetch the checkpoint again")
    for file in weight_map.values():
        _check_inside(folder, file)
    return weight_map


def _check_inside(folder: Path, file: object) -> None:
    if not is_inside(file):
        raise ValueError(
            f"{folder}: {INDEX_FILE} names the file {file!r}; allowed: plain file names "
            "inside the folder; do not use this checkpoint"
        )
    if not str(file).lower().endswith(SUFFIX):
        raise ValueError(
            f"{folder}: {INDEX_FILE} names the file {file!r}; allowed: safetensors files; "
            "convert the checkpoint first"
        )


def _check_shards(folder: Path, weight_map: Mapping[str, str], names: Iterable[str]) -> None:
    files = list(dict.fromkeys(weight_map.values()))
    missing = [f for f in files if not (folder / f).is_file() and not is_packed(folder / f)]
    if not missing:
        return
    more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
    message = f"{folder}: shard {missing[0]!r} named by {INDEX_FILE}{more} missing"
    if others := [name for name in names if name not in files and name not in ADAPTER_FILES]:
        message += f"; it does not name {_listed(others)}, so it is of another save"
    raise FileNotFoundError(f"{message}; fetch the checkpoint again")


def _base_model(folder: Path) -> str:
    try:
        base = read_checkpoint_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    except (ValueError, OSError):  # the name is only additional information in a message
        base = None
    return f"for {base}" if base else "base model not named"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:2])
    return f"{shown} and {len(names) - 2} more" if len(names) > 2 else shown


def _count(files: Sequence[str]) -> str:
    return "one shard" if len(files) == 1 else f"set of {len(files)} shards"


def digest_folder(folder: Path) -> str:
    """Return the sha256 over the names and contents of a checkpoint folder's files.

    The contents are read completely: two checkpoints that differ in a single weight are different
    models, and reading costs no more than loading. Hidden files, folders, unused weight files and
    documents are excluded. A packed folder has the digest of the one it was made from.
    """
    total, excluded = hashlib.sha256(), {*unread_weights(folder), MANIFEST}
    names = {unpacked_name(path.name) for path in folder.iterdir() if path.is_file()}
    for name in sorted(names - excluded):
        if Path(name).suffix not in DOCUMENTS and not name.startswith("."):
            total.update(f"{name}\0{file_digest(folder / name)}\n".encode())
    return total.hexdigest()
