"""Packed folders: a container in place of each safetensors file, other files as they are.

A manifest names every file of the unpacked folder with size and sha256, so that a missing, changed
or damaged file is found before anything appears under the name of the output.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from ...common.atomic import write_json
from ...common.checksum import verify_checksum, with_checksum
from ...common.json_files import read_json
from ...common.output_dir import MARKER
from ...common.validation import Integer, parse, validated
from ..stored_files import (
    MANIFEST,
    SUFFIX,
    file_digest,
    file_size,
    is_inside,
    is_packed,
    is_packed_folder,
    packed_path,
)
from .container import damaged
from .writing import OnBytes, pack_file, unpack_file

CHUNK = 2**20
"""Bytes of a side file that are in memory at once."""
REMEDY = "fetch the packed checkpoint again"

OnFile = Callable[[str], None]
"""Called with the name of each file before it is processed."""


@validated
class FileEntry:
    """Size in bytes and sha256 of an unpacked file."""

    size: Annotated[int, Integer(0)]
    sha256: str


@validated
class _Manifest:
    version: Literal[1]
    files: Mapping[str, FileEntry]


Files = Mapping[str, FileEntry]
"""Files of an unpacked folder by their names relative to it, with `/`."""


@dataclass(frozen=True)
class Progress:
    """Reports of the work on a folder."""

    on_file: OnFile
    on_bytes: OnBytes


def list_files(folder: Path) -> list[str]:
    """Return the names of all files of a folder and of its folders, without hidden ones.

    Raises:
        ValueError: there is a link to a folder, or to nothing.
    """
    names = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.is_file():
            names.append(path.name)
        elif path.is_symlink():
            raise ValueError(
                f"{path}: a link to {path.readlink()}, which is "
                f"{'a folder' if path.is_dir() else 'missing'}; allowed: files, links to files, "
                "folders"
            )
        elif path.is_dir():
            names += [f"{path.name}/{name}" for name in list_files(path)]
    return names


def read_manifest(folder: Path) -> Files:
    """Return the files that a packed folder unpacks to.

    Raises:
        FileNotFoundError: the folder is not packed.
        ValueError: the manifest is damaged, of another version, or names a file outside.
    """
    path = folder / MANIFEST
    if not is_packed_folder(folder):
        raise FileNotFoundError(
            f"{folder}: no {MANIFEST}; give a folder that `vlpress pack` has written"
        )
    stored = verify_checksum(read_json(path, REMEDY), str(path), remedy=REMEDY)
    files = parse(_Manifest, stored, str(path), remedy=REMEDY).files
    for name in files:
        if not is_inside(name):
            raise ValueError(
                f"{path}: names the file {name!r}; allowed: names inside the folder; do not use "
                "this checkpoint"
            )
    return files


def describe_folder(folder: Path) -> dict[str, FileEntry]:
    """Hash all files of an unpacked folder, see `list_files`."""
    return {
        name: FileEntry(size=file_size(folder / name), sha256=file_digest(folder / name))
        for name in list_files(folder)
    }


def pack_folder(source: Path, target: Path, *, threads: int, progress: Progress) -> None:
    """Pack a folder into an existing empty one.

    Args:
        source: folder of a checkpoint.
        target: existing and empty.
        threads: that code blocks.
        progress: reports.

    Raises:
        ValueError: a safetensors file is damaged, or see `list_files`.
        OSError: a file cannot be read or written.
    """
    files = {}
    for name in list_files(source):
        progress.on_file(name)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if _is_tensors(source / name):
            container = packed_path(target / name)
            index = pack_file(source / name, container, threads=threads, on_bytes=progress.on_bytes)
            files[name] = FileEntry(size=index.size, sha256=index.sha256)
        else:
            files[name] = _copy(source / name, target / name, progress.on_bytes)
    entries = {name: asdict(entry) for name, entry in files.items()}
    write_json(target / MANIFEST, with_checksum({"version": 1, "files": entries}))


def unpack_folder(source: Path, target: Path, *, threads: int, progress: Progress) -> None:
    """Unpack a folder into an existing empty one; every file is compared with the manifest.

    Args:
        source: packed folder.
        target: existing and empty; incomplete if an error is raised.
        threads: that decode blocks.
        progress: reports.

    Raises:
        FileNotFoundError: the folder is not packed, or a file is missing.
        ValueError: a file is damaged or was changed, or the manifest is damaged.
        OSError: a file cannot be read or written.
    """
    for name, expected in read_manifest(source).items():
        progress.on_file(name)
        path = source / name
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if is_packed(path):
            container = packed_path(path)
            index = unpack_file(
                container, target / name, threads=threads, on_bytes=progress.on_bytes
            )
            if (index.size, index.sha256) != (expected.size, expected.sha256):
                raise damaged(container, f"it holds another file than {MANIFEST} names")
        elif name == MARKER and not path.exists():
            continue  # of use on the machine of the original only, and not uploaded by `push`
        elif not path.is_file():
            raise FileNotFoundError(
                f"{source}: {name}, which {MANIFEST} names, is missing; {REMEDY}"
            )
        elif _copy(path, target / name, progress.on_bytes) != expected:
            raise ValueError(f"{path}: damaged, or changed after it was packed; {REMEDY}")


def _is_tensors(path: Path) -> bool:
    # Some trainers save an empty file together with the shards.
    return path.suffix.lower() == SUFFIX and path.stat().st_size > 0


def _copy(source: Path, target: Path, on_bytes: OnBytes) -> FileEntry:
    """Copy a file; return its description."""
    digest, size = hashlib.sha256(), 0
    with source.open("rb") as file, target.open("wb") as out:
        while data := file.read(CHUNK):
            digest.update(data)
            size += out.write(data)
            on_bytes(len(data))
    return FileEntry(size=size, sha256=digest.hexdigest())
