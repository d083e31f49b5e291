"""Custom questions in CSV and TSV files: rows become records of the JSONL form (`jsonl`).

The header names the keys, in any case: `question`, `answer`, `image`, `choices`, ... Options may
also be columns of their own with a letter as name (`A`, `B`, ...). A cell with several images,
answers or options is a JSON list; options may be separated by `|` too. As in VLMEvalKit's tables,
an image may be given as the id of the row that has it.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import string
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ....calib.samples.media_keys import refuse_media_keys
from .tsv import large_cells

SYNONYMS = {
    "index": "id",
    "options": "choices",
    "image_path": "image",
    "l2-category": "group",
}
"""Names of columns and keys that mean another one."""
REQUIRED = ("question", "answer")
LETTERS = frozenset(string.ascii_uppercase)
_LISTS = ("answer", "choices", "image", "images")

Entry = tuple[int, int, Mapping[str, Any] | ValueError]
"""Number of a row from 1, its first line in the file, and its record or its fault."""


def read_columns(text: str, suffix: str) -> list[str]:
    """Return the header of a CSV or TSV file as written; empty for an empty file."""
    first = next(iter(text.splitlines()), "")
    with large_cells():
        return next(csv.reader([first], delimiter=delimiter(text, suffix)), [])


def read_table_entries(text: str, path: Path, keys: Sequence[str]) -> list[Entry]:
    """Convert the rows of a CSV or TSV file to records.

    Args:
        text: content of the file.
        path: the file; its suffix decides the delimiter. A CSV file may use semicolons.
        keys: keys that are read.

    Raises:
        ValueError: a required column is missing, a column is repeated or holds media under a name
            that is not read, or the file is not of this form.
    """
    header = read_columns(text, path.suffix.lower())
    names = [column_key(name) for name in header]
    if missing := [key for key in REQUIRED if key not in names]:
        raise ValueError(
            f"{path.name}: column {' and '.join(missing)} missing; found "
            f"{', '.join(header)[:200] or 'nothing'}; rename them, see docs/own-tasks.md"
        )
    if repeated := [name for name in names if names.count(name) > 1]:
        same = [column for column, name in zip(header, names, strict=True) if name == repeated[0]]
        raise ValueError(
            f"{path.name}: columns {' and '.join(same)} are both {repeated[0]}; keep one"
        )
    read = {*keys, *LETTERS}
    entries = list(_rows(text, path, names))
    for _, _, record in entries:
        if isinstance(record, Mapping):
            try:
                refuse_media_keys(record, read)
            except ValueError as error:
                raise ValueError(f"{path.name}: {error}") from None
    kept = [(n, line, _only(record, read)) for n, line, record in entries]
    return _resolve_references(kept, path.parent)


def unread_columns(text: str, suffix: str, keys: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of a file that are not read, as written."""
    read = {*keys, *LETTERS}
    return tuple(name for name in read_columns(text, suffix) if column_key(name) not in read)


def column_key(column: str) -> str:
    """Return the key that a column of the header holds."""
    name = column.strip()
    if name.upper() in LETTERS:
        return name.upper()
    return SYNONYMS.get(name.lower(), name.lower())


def delimiter(text: str, suffix: str) -> str:
    """Return the delimiter of a file with this text: commas in CSV, or semicolons."""
    header = next(iter(text.splitlines()), "")
    if suffix == ".tsv":
        return "\t"
    return ";" if ";" in header and "," not in header else ","


def _rows(text: str, path: Path, names: Sequence[str]) -> Iterator[Entry]:
    """Yield the rows after the header that are not empty."""
    mark = delimiter(text, path.suffix.lower())
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    number, begin = 0, 1
    try:
        with large_cells():
            for cells in lines:
                line, begin = begin, lines.line_num + 1
                if line == 1 or not any(cell.strip() for cell in cells):
                    continue
                number += 1
                yield number, line, _record(cells, names)
    except csv.Error as error:
        raise ValueError(f"{path.name}:{begin} is not a row of a table ({error})") from error


def _record(cells: Sequence[str], names: Sequence[str]) -> Mapping[str, Any] | ValueError:
    if len(cells) != len(names):
        return ValueError(f"it has {len(cells)} cells, the header {len(names)}; quote the commas")
    values = {name: cell for name, cell in zip(names, cells, strict=True) if cell.strip()}
    return {key: parse_cell(key, cell) for key, cell in values.items()}


def parse_cell(key: str, cell: str) -> Any:
    """Parse a cell: a list or object where the key may hold one, else the text."""
    if key not in _LISTS:
        return cell
    text = cell.strip()
    if text[:1] + text[-1:] in ("[]", "{}"):
        for parse in (json.loads, ast.literal_eval):
            try:
                value = parse(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(value, list | dict):
                return value
    if key == "choices":
        return [part.strip() for part in cell.split("|")]
    return cell


def _only(record: Mapping[str, Any] | ValueError, read: set[str]) -> Mapping[str, Any] | ValueError:
    if isinstance(record, ValueError):
        return record
    return {key: value for key, value in record.items() if key in read}


def _resolve_references(entries: list[Entry], folder: Path) -> list[Entry]:
    """Replace images that are given as the id of another row by that row's images."""
    images = {
        str(record["id"]): record["image"]
        for _, _, record in entries
        if isinstance(record, Mapping) and "id" in record and "image" in record
    }

    def resolve(record: Mapping[str, Any] | ValueError) -> Mapping[str, Any] | ValueError:
        if isinstance(record, ValueError):
            return record
        cell = record.get("image")
        is_reference = isinstance(cell, str) and cell in images and len(cell) <= 64
        if not is_reference or (folder / str(cell)).is_file():
            return record
        return {**record, "image": images[str(cell)]}

    return [(number, line, resolve(record)) for number, line, record in entries]
