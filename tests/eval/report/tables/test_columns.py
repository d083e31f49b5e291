from __future__ import annotations

from vlpress.eval.report.tables.columns import (
    HTML,
    MARKDOWN,
    Cell,
    Column,
    DataTable,
    at,
    at_or_unknown,
    console_table,
    markdown_table,
)
from vlpress.eval.report.tables.formatting import Medium, difference


def test_columns_without_a_value_are_left_out() -> None:
    columns = (
        Column("name", lambda r: r, note="always"),
        Column("never", lambda r: None, note="unseen"),
        Column("once", lambda r: Cell("x", "gain") if r == "b" else None),
    )
    grid = DataTable("t", columns, ["a", "b"]).grid(Medium.HTML)
    assert [column.head for column in grid.columns] == ["name", "once"]
    assert [[cell.value for cell in row] for row in grid.rows] == [["a", ""], ["b", "x"]]
    assert grid.rows[1][1].style == "number gain"
    assert grid.notes == [("name", "always")]


def test_media_choose_columns_and_formats() -> None:
    columns = (
        Column("name", at("name"), style="name"),
        Column("Δ", at("delta"), difference(2, console=1)),
        Column("page", at("delta"), media=HTML),
        Column("text", at("delta"), media=MARKDOWN),
    )
    table = DataTable("t", columns, [{"name": "<b>|", "delta": -0.25}])
    assert markdown_table(table).splitlines() == [
        "| name    |     Δ |   text |",
        "|:--------|------:|-------:|",
        "| \\<b\\>\\| | -0.25 |  -0.25 |",
    ]
    assert [line.split() for line in console_table(table).splitlines()] == [
        ["name", "delta"],
        ["------", "-------"],
        ["<b>|", "-0.2"],
    ]
    heads = [column.head for column in table.grid(Medium.HTML).columns]
    assert heads == ["name", "Δ", "page"]


def test_labels_are_marks_on_pages() -> None:
    table = DataTable("t", (Column("name", lambda r: Cell(r, label="synthetic")),), ["a"])
    assert "| a (synthetic) |" in markdown_table(table)
    assert "synthetic" not in console_table(table)
    assert table.grid(Medium.HTML).rows[0][0].label == "synthetic"


def test_accessors_of_missing_values() -> None:
    row = {"a": {"b": 1}, "c": None}
    assert [at(*keys)(row) for keys in (("a", "b"), ("a", "x"), ("c", "d"), ("x",))] == [
        1,
        None,
        None,
        None,
    ]
    assert (at_or_unknown("a", "b")(row).value, at_or_unknown("c")(row).value) == (1, "unknown")


def test_a_table_without_rows_has_its_heads() -> None:
    table = DataTable("t", (Column("name", at("name")), Column("n", at("n"))), [])
    assert console_table(table).split()[0] == "name"
    assert markdown_table(table).startswith("| name")
