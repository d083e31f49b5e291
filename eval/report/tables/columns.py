"""Tables as data, rendered as HTML, Markdown and console text.

A `Column` has the accessor of its value in a row, a format, a meaning, and the media that show it.
A column without a value in any row is left out, so that reports written before a number existed
still render.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tabulate import tabulate

from .formatting import SAMPLE, SYNTHETIC, TEXT, UNKNOWN, Format, Medium, escape

ALL_MEDIA = tuple(Medium)
HTML = (Medium.HTML,)
MARKDOWN = (Medium.MARKDOWN,)
PAGES = (Medium.HTML, Medium.MARKDOWN)
PLAIN = (Medium.MARKDOWN, Medium.CONSOLE)
_ASCII = str.maketrans({"Δ": "delta", "×": "x"})  # heads on a console of any encoding

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """A value with properties of its own."""

    value: Any
    style: str = ""  # classes of the style sheet, added to the column's
    label: str = ""  # mark after the text, such as "synthetic"; not on the console
    href: str = ""  # relative link, HTML only
    format: Format | None = None  # instead of the column's


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    head: str
    value: Callable[[Any], Any]  # of one row: a `Cell` or a bare value; None: nothing to show
    format: Format = TEXT
    note: str = ""  # meaning of the number in one sentence; not on the console
    style: str = "number"  # classes of its cells and its head; "" for text
    media: Collection[Medium] = ALL_MEDIA
    is_detail: bool = False  # HTML shows it in a folded table

    @property
    def side(self) -> str:
        """Alignment: numbers to the right."""
        return "right" if "number" in self.style.split() else "left"


@dataclass(frozen=True)
class Grid:
    """The cells of a table as text for one medium."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]  # whose values are text

    @property
    def notes(self) -> list[tuple[str, str]]:
        """Head and meaning of each column that needs an explanation."""
        return [(column.head, column.note) for column in self.columns if column.note]


@dataclass(frozen=True)
class DataTable:
    """A table in no particular medium."""

    caption: str  # names the table for screen readers
    columns: Sequence[Column]  # the first one names the row
    rows: Sequence[Any]
    is_notable: bool = False  # whether HTML unfolds the details

    def grid(self, medium: Medium, *, details: bool | None = None) -> Grid:
        """Format the columns of a medium; those without any value are left out.

        Args:
            medium: decides the columns and their format.
            details: True: the first column and the details; False: no details; None: all columns.
        """
        shown = [
            column
            for number, column in enumerate(self.columns)
            if medium in column.media
            and (details in (None, column.is_detail) or (details and number == 0))
        ]
        values = [[_as_cell(column.value(row)) for column in shown] for row in self.rows]
        filled = [
            i
            for i in range(len(shown))
            if i == 0 or any(cells[i].value is not None for cells in values)
        ]
        return Grid(
            self.caption,
            tuple(shown[i] for i in filled),
            tuple(tuple(_format(cells[i], shown[i], medium) for i in filled) for cells in values),
        )


def _as_cell(value: Any) -> Cell:
    return value if isinstance(value, Cell) else Cell(value)


def _format(cell: Cell, column: Column, medium: Medium) -> Cell:
    form = cell.format or column.format
    text = "" if cell.value is None else form.text(cell.value, medium)
    return replace(cell, value=text, style=f"{column.style} {cell.style}".strip())


def at(*keys: str) -> Callable[[Row], Any]:
    """Accessor of a nested value of a row; None if a key is missing or a level is None."""

    def value(row: Row) -> Any:
        level: Any = row
        for key in keys:
            level = None if level is None else level.get(key)
        return level

    return value


def at_or_unknown(*keys: str) -> Callable[[Row], Cell]:
    """Accessor like `at`, with the word "unknown" instead of None."""
    read = at(*keys)
    return lambda row: or_unknown(read(row))


def or_unknown(value: Any, form: Format | None = None) -> Cell:
    """A value in a format of its own; the word "unknown" instead of None."""
    return Cell(UNKNOWN, format=TEXT) if value is None else Cell(value, format=form)


def named_rows(entries: Iterable[tuple[str, Row]]) -> list[dict[str, Any]]:
    """Rows of a table with one entry each; `name` is its first column."""
    return [{"name": name, **entry} for name, entry in entries]


def benchmark_cell(row: Row) -> Cell:
    """A benchmark's name, marked if its images are drawings, or if only a sample was asked."""
    marks = {SYNTHETIC: row.get("synthetic"), SAMPLE: row.get("limited")}
    return Cell(row["name"], label=", ".join(mark for mark, is_set in marks.items() if is_set))


BENCHMARK = Column("benchmark", benchmark_cell, style="name")


def markdown_table(table: DataTable) -> str:
    """Render a table in GitHub's Markdown; texts are escaped by their format."""
    grid = table.grid(Medium.MARKDOWN)
    heads = [escape(column.head) for column in grid.columns]
    rows = [
        [f"{cell.value} ({cell.label})" if cell.label else cell.value for cell in row]
        for row in grid.rows
    ]
    return _tabulate(grid, heads, rows, "pipe")


def markdown_notes(table: DataTable) -> str:
    """The meanings of the columns that a Markdown table shows, as one paragraph."""
    notes = table.grid(Medium.MARKDOWN).notes
    return " ".join(f"**{escape(head)}**: {note}" for head, note in notes)


def console_table(table: DataTable) -> str:
    """Render a table as aligned text."""
    grid = table.grid(Medium.CONSOLE)
    heads = [column.head.translate(_ASCII) for column in grid.columns]
    return _tabulate(grid, heads, [[cell.value for cell in row] for row in grid.rows], "simple")


def _tabulate(grid: Grid, heads: list[str], rows: list[list[str]], style: str) -> str:
    # tabulate refuses alignments of a table without rows.
    sides = [column.side for column in grid.columns] if rows else None
    return tabulate(rows, heads, tablefmt=style, disable_numparse=True, colalign=sides)
