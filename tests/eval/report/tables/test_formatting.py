from __future__ import annotations

import pytest

from vlpress.eval.report.tables import formatting
from vlpress.eval.report.tables.formatting import Medium


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (formatting.number(-0.04), "0.0"),
        (formatting.signed(-1.25, 2), "−1.25"),
        (formatting.signed(0.04), "0.0"),
        (formatting.signed(3), "+3.0"),
        (formatting.interval([-1, 2.26]), "−1.0 to +2.3"),
        (formatting.p_value(0.0004), "< 0.001"),
        (formatting.p_value(0.5), "0.500"),
        (formatting.nats(0), "0.0000"),
        (formatting.nats(0.01234), "0.0123"),
        (formatting.nats(3.456), "3.46"),
        (formatting.nats(2.44e-5), "2.4 × 10⁻⁵"),
        (formatting.size(999), "999 B"),
        (formatting.size(8_430_000), "8.4 MB"),
        (formatting.size(2e15), "2000.0 TB"),
        (formatting.ratio(1, 2), "0.50×"),
        (formatting.ratio(1, 0), None),
        (formatting.count_of(1, "question"), "1 question"),
        (formatting.count_of(1164, "question"), "1,164 questions"),
        (formatting.join_names(["a"]), "a"),
        (formatting.join_names(["a", "b", "c"]), "a, b and c"),
        (formatting.points(1.0), "1 point"),
        (formatting.points(0.5), "0.5 points"),
    ],
)
def test_numbers_in_words(shown: object, expected: object) -> None:
    assert shown == expected


@pytest.mark.parametrize(
    ("form", "value", "html", "markdown", "console"),
    [
        (formatting.fixed(2, console=1), -1.25, "−1.25", "-1.25", "-1.2"),
        (formatting.fixed(1, unit=" %"), 12.34, "12.3 %", "12.3 %", "12.3 %"),
        (formatting.difference(4, markdown=5), 0.5, "+0.5000", "+0.50000", "+0.50000"),
        (formatting.span(1, console=0), (-1, 2), "−1.0 to +2.0", "[-1.0, +2.0]", "[-1, +2]"),
        (formatting.divergence(".3f"), 1.5e-5, "1.5 × 10⁻⁵", "0.000", "0.000"),
        (formatting.P_VALUE, 0.0004, "< 0.001", "0.0004", "0.0004"),
        (formatting.COUNT, 1164, "1,164", "1164", "1164"),
        (formatting.BYTES, 8_430_000, "8.4 MB", "8430000 B", "8.4 MB"),
        (formatting.text_format(4), "a|b c", "a|b c", "a\\|b…", "a|b c"),
    ],
)
def test_numbers_of_each_medium(
    form: formatting.Format, value: object, html: str, markdown: str, console: str
) -> None:
    assert [form.text(value, medium) for medium in Medium] == [html, markdown, console]


def test_markdown_cells_are_one_safe_line() -> None:
    assert formatting.escape("a\n|b*") == "a \\|b\\*"
    assert formatting.escape("x" * 100) == "x" * 79 + "…"
