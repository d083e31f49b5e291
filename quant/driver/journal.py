"""What is kept of a run that is not finished, so that it can go on where it stopped.

A folder holds ``journal.jsonl``, with a line for each block that is done, ``blocks/``, with what
will be written of it, and ``states/``, with the activations in front of the next one. A line is
added when all that it speaks of has reached the disk: what no line names is as good as not there.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.checksum import verify_checksum, with_checksum
from ...common.lazy_tensor import LazyTensor, TensorLike
from ...common.safetensors_writer import sync_folder, write_tensors
from ...model.checkpoint import stored_tensors

JOURNAL = "journal.jsonl"
BLOCKS = "blocks"
STATES = "states"
NAMES = (JOURNAL, BLOCKS, STATES)
"""All that a run leaves in its folder."""


class Journal:
    """The finished part of a run.

    Args:
        folder: made if it is missing.
        writes: whether this process does; others that share the work only know what is done.

    Raises:
        ValueError: the journal is damaged elsewhere than in its last line.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.states, self.writes = folder / STATES, writes
        self._blocks, self._journal = folder / BLOCKS, folder / JOURNAL
        if writes:
            self._blocks.mkdir(parents=True, exist_ok=True)
        self.records = self._read()
        """What was said of each block, in the order in which they were done."""

    def add(self, record: Mapping[str, Any], tensors: Mapping[str, TensorLike]) -> None:
        """Take a block for done.

        Args:
            record: JSON values.
            tensors: what will be written of it, by canonical name.
        """
        if self.writes:
            self._write(record, tensors)
        self.records.append(dict(record))

    def _write(self, record: Mapping[str, Any], tensors: Mapping[str, TensorLike]) -> None:
        write_tensors(tensors, self._file(len(self.records)))
        sync_folder(self._blocks)
        with self._journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(with_checksum(record), ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if not self.records:
            sync_folder(self._journal.parent)

    def tensors(self) -> dict[str, LazyTensor]:
        """All that was given to `add`, by name."""
        found: dict[str, LazyTensor] = {}
        for number in range(len(self.records)):
            found |= stored_tensors(self._file(number))
        return found

    def _file(self, number: int) -> Path:
        return self._blocks / f"{number:05d}.safetensors"

    def _read(self) -> list[dict[str, Any]]:
        """The journal, but for a last line that was not written to its end."""
        if not self._journal.is_file():
            return []
        records: list[dict[str, Any]] = []
        data, end = self._journal.read_bytes(), 0
        while end < len(data):
            line, newline, rest = data[end:].partition(b"\n")
            record = _parsed(line) if newline else None
            if record is None and rest:
                # What it stood on is gone: the states in front of a block go when it is done.
                raise ValueError(
                    f"{self._journal} line {len(records) + 1} is damaged or was edited; "
                    "begin again with --fresh"
                )
            if record is None:
                break
            records.append(record)
            end += len(line) + 1
        if end < len(data) and self.writes:
            os.truncate(self._journal, end)
        return records


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line of the journal; None if it is not as it was written."""
    try:
        return verify_checksum(json.loads(line), "journal")
    except (ValueError, RecursionError):
        return None
