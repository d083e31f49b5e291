"""The rows of a question file as they are written, to copy some of them into another file."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...common.text_files import decode_utf8, read_object
from ...model.processing.media import find_image
from ..tasks.files.jsonl import KEYS
from ..tasks.files.tables import (
    column_key,
    delimiter,
    parse_cell,
    read_table_entries,
)
from ..tasks.files.tsv import large_cells

IMAGES = ("image", "images")


class QuestionFile:
    """A JSONL, CSV or TSV file that `read_questions` has read without an error.

    Args:
        path: the file. Its relative image paths are rewritten for the folder that they are copied
            to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = decode_utf8(path.read_bytes(), path.name)
        self._is_table = path.suffix.lower() != ".jsonl"
        if self._is_table:
            entries = read_table_entries(self._text, path, KEYS)
            self._records: list[Any] = [record for _, _, record in entries]
            self._header, self._cells = self._read_cells()
        else:
            self._lines = [line for line in self._text.split("\n") if line.strip()]
            self._records = [_try_object(line) for line in self._lines]

    def images(self, row: int, folder: Path) -> list[Any]:
        """Return the images of a row, paths relative to a folder.

        Args:
            row: position of a sound row.
            folder: folder of the file that they are written to.
        """
        record = self._records[row]
        for key in ("image", "image_path", "images"):
            if value := record.get(key):
                values = value if isinstance(value, list) else [value]
                return [self._moved(each, folder) for each in values]
        return []

    def subset(self, rows: Sequence[int], folder: Path) -> str:
        """Return the content of a file of the same format with these rows.

        Args:
            rows: positions, in order.
            folder: folder of that file.
        """
        if self._is_table:
            return self._subset_of_table(rows, folder)
        lines = []
        for row in rows:
            record, line = self._records[row], self._lines[row]
            moved = {key: self._moved_all(record[key], folder) for key in record if _is_image(key)}
            if any(moved[key] != record[key] for key in moved):
                line = json.dumps({**record, **moved}, ensure_ascii=False)
            lines.append(line.rstrip("\r") + "\n")
        return "".join(lines)

    def _subset_of_table(self, rows: Sequence[int], folder: Path) -> str:
        buffer = io.StringIO(newline="")
        mark = delimiter(self._text, self._path.suffix.lower())
        writer = csv.writer(buffer, delimiter=mark, lineterminator="\n")
        writer.writerow(self._header)
        columns = [n for n, name in enumerate(self._header) if column_key(name) in IMAGES]
        for row in rows:
            cells = list(self._cells[row])
            for column in columns:
                if column < len(cells) and cells[column].strip():
                    cells[column] = self._moved_cell(column, cells[column], row, folder)
            writer.writerow(cells)
        return buffer.getvalue()

    def _moved_cell(self, column: int, cell: str, row: int, folder: Path) -> str:
        key = column_key(self._header[column])
        record = self._records[row]
        value = record.get(key, cell) if isinstance(record, dict) else parse_cell(key, cell)
        moved = self._moved_all(value, folder)
        return moved if isinstance(moved, str) else json.dumps(moved, ensure_ascii=False)

    def _read_cells(self) -> tuple[list[str], list[list[str]]]:
        mark = delimiter(self._text, self._path.suffix.lower())
        with large_cells():
            rows = list(csv.reader(io.StringIO(self._text, newline=""), delimiter=mark))
        return rows[0], [cells for cells in rows[1:] if any(cell.strip() for cell in cells)]

    def _moved_all(self, value: Any, folder: Path) -> Any:
        if isinstance(value, list):
            return [self._moved(each, folder) for each in value]
        return self._moved(value, folder)

    def _moved(self, value: Any, folder: Path) -> Any:
        """Return an image value for a file in another folder; what is no relative path is kept."""
        if isinstance(value, dict):
            return {
                key: self._moved(each, folder) if key in ("path", "url") and each else each
                for key, each in value.items()
            }
        if not isinstance(value, str) or os.path.isabs(value) or value[:5].lower() == "file:":
            return value
        try:
            source = find_image(value, self._path.parent)
        except (ValueError, OSError):  # a broken row is copied as it is
            return value
        return value if isinstance(source, bytes) else os.path.relpath(source, folder)


def _is_image(key: str) -> bool:
    return key in ("image", "image_path", "images")


def _try_object(line: str) -> dict[str, Any]:
    """Parse a line; empty for a broken row."""
    try:
        return read_object(line)
    except ValueError:
        return {}
