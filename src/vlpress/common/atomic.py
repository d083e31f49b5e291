"""Atomic writes: a file or folder appears under its name complete, or not at all.

Data is written under a temporary name in the same file system and renamed, which POSIX makes
atomic. A rename alone does not survive a power cut: the file system may store the new name before
the data. With `sync`, and for folders always, data and names are flushed to disk (fsync) first.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

PART = ".part"
"""Suffix of a file that is being written; a killed process leaves such files behind."""
STAGING = ".{}.vlpress-staged"
"""Name of the staging area of an exclusive `atomic_folder`."""


def write_bytes(path: Path, data: bytes, *, sync: bool = False) -> None:
    """Write a file atomically.

    Args:
        path: file to create or replace.
        data: its content.
        sync: flush to disk before returning.

    Raises:
        OSError: the disk is full or cannot be written; `path` is unchanged.
    """
    with atomic_path(path, sync=sync) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str, *, sync: bool = False) -> None:
    """Write a UTF-8 file atomically; lone surrogates are written as backslash escapes."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"), sync=sync)


def write_json(path: Path, value: object, *, sync: bool = False) -> None:
    """Write JSON atomically, indented by two spaces, keys in the order given.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(f"{path} cannot be written: a number in it is not finite") from error
    write_text(path, text, sync=sync)


@contextmanager
def atomic_path(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yield a temporary path, which is renamed to `path` if the `with` block succeeds.

    Args:
        path: file to create or replace; only one process may write it at a time.
        sync: flush the file and its name to disk before returning.
    """
    temporary = path.with_name(path.name + PART)
    try:
        yield temporary
        if sync:
            _fsync(temporary)
        os.replace(temporary, path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise
    if sync:
        sync_folder(path.parent)


@contextmanager
def atomic_folder(
    path: Path,
    *,
    existing: Literal["refuse", "replace", "keep"] = "refuse",
    exclusive: bool = False,
) -> Iterator[Path]:
    """Yield an empty folder, which is renamed to `path` if the `with` block succeeds.

    All files are flushed to disk before the rename. Folders cannot be exchanged atomically: with
    `existing="replace"`, a kill leaves the old folder, none, or the new one.

    Args:
        path: folder to create.
        existing: what to do if `path` exists. With "keep", the new folder is discarded if another
            process created an equivalent one meanwhile.
        exclusive: the caller holds a lock on `path`. The staging area then has a fixed name, and
            one left by a killed process is removed; otherwise its name is unique.

    Raises:
        ValueError: `path` is a file, or exists although `existing` is "refuse".
    """
    if path.is_file():
        raise ValueError(f"output {path} is a file; give a folder that does not exist yet")
    if existing == "refuse" and path.exists():
        raise ValueError(f"output folder {path} exists; give another or ask to overwrite it")
    path.parent.mkdir(parents=True, exist_ok=True)
    if exclusive:
        staging = path.with_name(STAGING.format(path.name))
        if staging.exists():
            shutil.rmtree(staging)
        staging.mkdir()
    else:
        staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    # One level down: mkdtemp makes private folders, while this one gets the rights of the umask.
    folder = staging / path.name
    try:
        folder.mkdir()
        yield folder
        _sync_tree(folder)
        if existing == "replace" and path.exists():
            path.rename(staging / f"{path.name}.old")
        try:
            folder.rename(path)
        except OSError:
            if existing != "keep" or not path.is_dir():
                raise
        sync_folder(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk: names created or renamed in it survive a power cut.

    Windows opens no folders as files, and its file systems log changes of names by themselves.
    """
    if os.name != "nt":
        _fsync(folder)


def _sync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            _fsync(Path(root, name))
        sync_folder(Path(root))


def _fsync(path: Path) -> None:
    # Windows flushes only files that are open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
