"""Append-only journals: JSON lines with a checksum each, flushed to disk as they are appended.

A record is committed once its whole line, newline included, is on disk. A killed append leaves a
line without newline at the end of the file; readers ignore it and the next writer cuts it off.
Damage anywhere else is an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from .atomic import sync_folder
from .checksum import verify_checksum, with_checksum


@dataclass(frozen=True)
class JournalContents:
    """The committed part of a journal."""

    header: dict[str, Any] | None
    """First line, without its checksum; None if the journal has none or nothing is committed."""
    records: list[dict[str, Any]]
    """Lines after the header, without their checksums."""
    size: int
    """Bytes of the committed lines."""


class JournalFile:
    """A journal open for appending; created if missing.

    Args:
        path: file; only one process may append at a time.
        committed: bytes of it to keep, see `JournalContents.size`; None keeps all.
    """

    def __init__(self, path: Path, committed: int | None = None) -> None:
        is_new = not path.exists()
        self._file = path.open("ab")
        if is_new:
            sync_folder(path.parent)
        elif committed is not None and path.stat().st_size > committed:
            os.truncate(path, committed)

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records and wait until they are on disk.

        Raises:
            TypeError: a value is not JSON; nothing is written.
            ValueError: a number is NaN or infinite; nothing is written.
            OSError: the disk is full or cannot be written.
        """
        lines = [json.dumps(with_checksum(r), ensure_ascii=False) + "\n" for r in records]
        # Tokens of a model may decode to half of a surrogate pair; JSON readers accept these bytes.
        self._file.write("".join(lines).encode("utf-8", "surrogatepass"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> JournalFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


def read_journal(
    path: Path,
    remedy: str,
    *,
    header_keys: Collection[str] = (),
    ignore_damaged_end: bool = False,
) -> JournalContents:
    """Read the committed lines of a journal; the file is not changed.

    Args:
        path: file; a missing one is an empty journal.
        remedy: what the user should do if it is damaged, for the error message.
        header_keys: keys of the header; without any, the journal has no header.
        ignore_damaged_end: take a damaged last line for uncommitted even if it ends in a newline.
            After a power cut a file may have its new length but not its new content.

    Raises:
        ValueError: a line is damaged or was edited, or there is no header.
    """
    data = path.read_bytes() if path.is_file() else b""
    size = data.rfind(b"\n") + 1
    lines = [line for line in data[:size].split(b"\n") if line]
    header = _parse_header(lines[0], path, header_keys) if header_keys and lines else None
    records: list[dict[str, Any]] = []
    first = 1 if header is None else 2
    for number, line in enumerate(lines[first - 1 :], start=first):
        try:
            records.append(verify_checksum(json.loads(line), "journal"))
        except (ValueError, RecursionError) as error:
            if ignore_damaged_end and number == len(lines) and size == len(data):
                size -= len(line) + 1
                break
            raise ValueError(f"{path} line {number} is damaged or was edited; {remedy}") from error
    return JournalContents(header, records, size)


def _parse_header(line: bytes, path: Path, keys: Collection[str]) -> dict[str, Any]:
    try:
        header = json.loads(line)
        is_header = isinstance(header, dict) and all(key in header for key in keys)
    except (ValueError, RecursionError):
        is_header = False
    if not is_header:
        raise ValueError(
            f"{path} does not start with a header ({', '.join(keys)}): it was not written by "
            "vlpress; use another folder"
        )
    return verify_checksum(header, f"{path} line 1")
