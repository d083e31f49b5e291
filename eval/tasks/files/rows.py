"""Rows of a benchmark, independent of the file format, and the checks that apply to all of them.

A broken row cannot be used: its image does not decode or is too large, its text contains a
placeholder token, or its answer is not an option. Broken rows are named in the report and count
as wrong for every model, because omitting them would change the denominator silently. A file with
many of them is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .image_store import StoredImage

MAX_BROKEN = 0.05  # of all rows; a single broken row among several is always allowed
_OPTION = re.compile(r"[A-Z]")
_NAMED_ROWS = 5  # rows named in a message
_REASON_LENGTH = 240  # characters of a row's id and fault in a message

Index = int | str
Faults = dict[Index, str]
"""Index of a broken row -> reason."""


@dataclass(frozen=True)
class Row:
    """One row of a benchmark file."""

    index: Index
    values: Mapping[str, str]  # column -> cell as written; empty cells are absent
    images: tuple[StoredImage, ...]  # in order of appearance
    line: int | None = None  # line of the file, for formats with one row per line

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def get(self, column: str, default: str = "") -> str:
        """Return a cell, or `default` where it is absent."""
        return self.values.get(column, default)

    @property
    def options(self) -> dict[str, str]:
        """Existing options: capital-letter columns with a value, in letter order."""
        letters = sorted(column for column in self.values if _OPTION.fullmatch(column))
        return {letter: self.values[letter] for letter in letters}

    @property
    def l2_category(self) -> str:
        """Coarse category; one published form spells the column with a capital L."""
        return self.get("l2-category") or self.get("L2-category")


@dataclass(frozen=True)
class BenchmarkTable:
    """A benchmark file in memory, its images on disk."""

    path: Path
    md5: str  # of the uncompressed bytes; for a folder, of the row contents
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    faults: Mapping[Index, str] = field(default_factory=dict)  # found while reading


@dataclass
class Findings:
    """Results of a benchmark's checks."""

    notes: list[str] = field(default_factory=list)
    faults: Faults = field(default_factory=dict)


def find_image_faults(rows: Iterable[Row]) -> Faults:
    """Decode every distinct image once; return the rows with an image no model can be shown."""
    reasons: dict[StoredImage, str] = {}
    faults: Faults = {}
    for row in rows:
        for image in row.images:
            if image not in reasons:
                reasons[image] = _try_to_open(image)
            if reason := reasons[image]:
                faults[row.index] = reason
    return faults


def _try_to_open(image: StoredImage) -> str:
    """Return why an image cannot be used; empty if it can."""
    try:
        image.open()
    except ValueError as error:
        return str(error)
    return ""


def find_answer_faults(
    rows: Iterable[Row], *, open_allowed: bool = False, question_needed: bool = True
) -> Faults:
    """Return the rows without an answer or question, or whose answer is not an option.

    Args:
        rows: the rows to check.
        open_allowed: whether rows without options may have a free-text answer.
        question_needed: whether a row without a question is at fault.
    """
    faults: Faults = {}
    for row in rows:
        if "answer" not in row.values:
            faults[row.index] = "it has no answer"
        elif (row.options or not open_allowed) and row["answer"] not in row.options:
            faults[row.index] = f"its answer {row['answer'][:20]!r} is none of its options"
        elif question_needed and "question" not in row.values:
            faults[row.index] = "it has no question"
    return faults


def accept_faults(name: str, faults: Mapping[str, str], rows: int) -> list[str]:
    """Return notes on broken rows.

    Args:
        name: file name, for messages.
        faults: id of a broken row -> reason.
        rows: number of rows, broken ones included.

    Raises:
        ValueError: more than `MAX_BROKEN` of the rows are broken, or all of them.
    """
    if not faults:
        return []
    first = [*faults.items()][:_NAMED_ROWS]
    shown = "; ".join(_shorten(f"{index}: {reason}") for index, reason in first)
    more = f" and {len(faults) - _NAMED_ROWS} more" if len(faults) > _NAMED_ROWS else ""
    if len(faults) > max(1, MAX_BROKEN * rows) or len(faults) == rows:
        raise ValueError(
            f"{name}: {len(faults)} of {rows} rows are broken ({shown}{more}), at most "
            f"{MAX_BROKEN:.0%} may be; fetch or repair the file"
        )
    return [f"{len(faults)} of {rows} rows are broken and count as wrong ({shown}{more})"]


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 3] + "..."


def refuse_rows(path: Path, fault: str, rows: Sequence[object]) -> None:
    """Raise a one-line error that names rows and their common fault, unless `rows` is empty.

    Args:
        path: the file.
        fault: predicate of the message, such as "repeat an index".
        rows: indices or line numbers of the rows.

    Raises:
        ValueError: `rows` is not empty.
    """
    if rows:
        named = ", ".join(str(row) for row in rows[:_NAMED_ROWS])
        more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
        raise ValueError(f"{path.name}: rows {named}{more} {fault}; fetch or repair the file")
