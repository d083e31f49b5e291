"""Tables as data: a column says what it shows, how, and what it means.

A new number in the report becomes a new `Column`. A column that has nothing to show in any row is
left out, so that reports made before a number existed still render.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One cell."""

    text: str
    style: str = ""  # classes of the style sheet
    href: str = ""  # relative link


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    head: str
    cell: Callable[[Any], Cell | str | int | None]  # of one row's data; None: nothing to show
    note: str = ""  # what the number means, in one sentence
    style: str = "number"  # classes of its cells and its head; "" for text


@dataclass(frozen=True)
class Table:
    """A table ready to be written."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def notes(self) -> list[tuple[str, str]]:
        """What the columns mean: head and sentence."""
        return [(column.head, column.note) for column in self.columns if column.note]


def make_table(caption: str, columns: Sequence[Column], rows: Iterable[Any]) -> Table:
    """Fill a table; columns without any content are left out.

    Args:
        caption: what the table shows, for those who do not see the page around it.
        columns: in order; the first one names the row.
        rows: what the columns' `cell` takes.
    """
    found = [[column.cell(row) for column in columns] for row in rows]
    kept = [
        i for i in range(len(columns)) if i == 0 or any(cells[i] is not None for cells in found)
    ]
    return Table(
        caption,
        tuple(columns[i] for i in kept),
        tuple(tuple(_cell(cells[i], columns[i]) for i in kept) for cells in found),
    )


def _cell(value: Cell | str | int | None, column: Column) -> Cell:
    if isinstance(value, Cell):
        return Cell(value.text, f"{column.style} {value.style}".strip(), value.href)
    return Cell("" if value is None else str(value), column.style)
