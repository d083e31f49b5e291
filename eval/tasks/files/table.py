"""Rows of a benchmark, whatever file they came from, and what must hold for each.

A row that cannot be asked or scored (an image that does not decode or is too large, a placeholder
token in its text, an answer that is no option) is broken. It is named in the report and counts as
wrong for every model: leaving it out would change the denominator in silence. A file with many of
them is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .image_store import Picture

MAX_BROKEN = 0.05  # of all rows; one of several is always allowed
_OPTION = re.compile(r"[A-Z]")
_NAMED_ROWS = 5  # rows named in a message
_REASON_LENGTH = 240  # characters of an id and what is wrong with its row, in a message

Index = int | str
Faults = dict[Index, str]
"""Index of a broken row -> what is wrong with it."""


@dataclass(frozen=True)
class Row:
    """One line of a benchmark file."""

    index: Index
    values: Mapping[str, str]  # column -> cell as written; empty cells are absent
    images: tuple[Picture, ...]  # in order of appearance
    line: int | None = None  # of the file, where a row is one

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def get(self, column: str, default: str = "") -> str:
        """Return a cell, or `default` where it is missing."""
        return self.values.get(column, default)

    @property
    def options(self) -> dict[str, str]:
        """The options that exist: capital-letter columns with a value, in letter order."""
        letters = sorted(column for column in self.values if _OPTION.fullmatch(column))
        return {letter: self.values[letter] for letter in letters}

    @property
    def l2_category(self) -> str:
        """The coarse category; one published form spells the column with a capital L."""
        return self.get("l2-category") or self.get("L2-category")


@dataclass(frozen=True)
class Table:
    """A benchmark file as read."""

    path: Path
    md5: str  # of the uncompressed bytes; of a folder, of what its rows hold
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    faults: Mapping[Index, str] = field(default_factory=dict)  # found while reading


@dataclass
class Findings:
    """What the checks of a benchmark found."""

    notes: list[str] = field(default_factory=list)
    faults: Faults = field(default_factory=dict)


def picture_faults(rows: Iterable[Row]) -> Faults:
    """Decode every image once; rows with one that cannot be shown to a model are broken."""
    reasons: dict[Picture, str] = {}
    faults: Faults = {}
    for row in rows:
        for picture in row.images:
            if picture not in reasons:
                reasons[picture] = _reason(picture)
            if reason := reasons[picture]:
                faults[row.index] = reason
    return faults


def _reason(picture: Picture) -> str:
    try:
        picture.open()
    except ValueError as error:
        return str(error)
    return ""


def answer_faults(rows: Iterable[Row], *, open_allowed: bool = False) -> Faults:
    """Rows without an answer, or whose answer is none of their options.

    Args:
        rows: the rows to check.
        open_allowed: rows without any option carry a free answer.
    """
    faults: Faults = {}
    for row in rows:
        if "answer" not in row.values:
            faults[row.index] = "it has no answer"
        elif (row.options or not open_allowed) and row["answer"] not in row.options:
            faults[row.index] = f"its answer {row['answer'][:20]!r} is none of its options"
        elif "question" not in row.values:
            faults[row.index] = "it has no question"
    return faults


def accept_faults(name: str, faults: Mapping[str, str], rows: int) -> list[str]:
    """Notes on broken rows.

    Args:
        name: of the file.
        faults: id of a broken row -> what is wrong with it.
        rows: how many there are, broken ones included.

    Raises:
        ValueError: there are more than a few, or none is left to ask.
    """
    if not faults:
        return []
    first = [*faults.items()][:_NAMED_ROWS]
    shown = "; ".join(_one_line(f"{index}: {reason}") for index, reason in first)
    more = f" and {len(faults) - _NAMED_ROWS} more" if len(faults) > _NAMED_ROWS else ""
    if len(faults) > max(1, MAX_BROKEN * rows) or len(faults) == rows:
        raise ValueError(
            f"{name}: {len(faults)} of {rows} rows are broken ({shown}{more}), at most "
            f"{MAX_BROKEN:.0%} may be; fetch or repair the file"
        )
    return [f"{len(faults)} of {rows} rows are broken and count as wrong ({shown}{more})"]


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _REASON_LENGTH else line[: _REASON_LENGTH - 3] + "..."


def fail_rows(path: Path, what: str, rows: Sequence[object]) -> None:
    """Raise one line that says what is wrong with which rows; nothing for no rows.

    Raises:
        ValueError: `rows` is not empty.
    """
    if rows:
        named = ", ".join(str(r) for r in rows[:_NAMED_ROWS])
        more = f" and {len(rows) - _NAMED_ROWS} more" if len(rows) > _NAMED_ROWS else ""
        raise ValueError(f"{path.name}: rows {named}{more} {what}; fetch or repair the file")
