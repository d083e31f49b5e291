"""Single files of a checkpoint folder, stored as they are or as containers (`packed/`).

In a packed folder a container `NAME.safetensors.vlz` takes the place of each safetensors file.
Everything that reads checkpoints asks for `NAME.safetensors`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors import SafetensorError, safe_open

from .config import LFS_POINTER

SUFFIX = ".safetensors"
PACKED = ".vlz"
"""Suffix of a container, after the name of the safetensors file."""
MANIFEST = "vlpress-packed.json"
"""Lists the files of a packed folder."""


def unpacked_name(name: str) -> str:
    """Return the name of the file that a container holds; other names are returned as they are.

    >>> unpacked_name("model.safetensors.vlz")
    'model.safetensors'
    """
    return name.removesuffix(PACKED) if name.lower().endswith(SUFFIX + PACKED) else name


def is_inside(file: object) -> bool:
    """Whether a name from a file names a file inside its folder, on any system.

    Lexical on purpose: hub caches are folders of links to files elsewhere.
    """
    if not isinstance(file, str) or not file or "\0" in file:
        return False
    parts = (PurePosixPath(file), PureWindowsPath(file))
    return not any(path.is_absolute() or path.drive or ".." in path.parts for path in parts)


def packed_path(path: Path) -> Path:
    """Return the path of the container of a safetensors file."""
    return path.with_name(path.name + PACKED)


def is_packed(path: Path) -> bool:
    """Whether a safetensors file is stored as a container."""
    return packed_path(path).is_file() and not path.is_file()


def is_packed_folder(folder: Path) -> bool:
    """Whether a folder is one that `pack_folder` has written."""
    return (folder / MANIFEST).is_file()


def open_file(path: Path) -> Any:
    """Open a safetensors file, packed or not.

    Raises:
        ValueError: the file is damaged, or a Git LFS pointer.
    """
    if is_packed(path):
        from .packed.reading import PackedFile

        return PackedFile(packed_path(path))
    try:
        return safe_open(str(path), framework="pt")
    except (SafetensorError, OSError) as error:
        raise damaged_file_error(path, error) from None


def damaged_file_error(path: Path, error: Exception) -> ValueError:
    """Build the error for a file that cannot be read."""
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                return ValueError(
                    f"{path}: a Git LFS pointer in place of the weights; run `git lfs pull` in "
                    "its folder"
                )
    size = path.stat().st_size
    return ValueError(
        f"{path}: truncated or not a safetensors file ({size} bytes; {error}); fetch it again"
    )


def file_size(path: Path) -> int:
    """Return the size of a file in bytes; of a packed one, unpacked."""
    if is_packed(path):
        from .packed.reading import stored_index

        return stored_index(packed_path(path)).size
    return path.stat().st_size


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content; of a packed one, the stored digest of the unpacked.

    Tensors of a container are compared with its digests when they are read.
    """
    if is_packed(path):
        from .packed.reading import stored_index

        return stored_index(packed_path(path)).sha256
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
