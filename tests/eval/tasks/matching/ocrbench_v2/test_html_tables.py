from __future__ import annotations

import pytest

from vlpress.eval.tasks.matching.ocrbench_v2.tables import (
    chart_score,
    html_table_score,
    markdown_table_score,
    table_similarity,
)

TABLE = "<table><tr><td>a</td><td>b</td></tr><tr><td>cd</td></tr></table>"


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (TABLE, 1.0),
        (TABLE.replace("cd", "cx"), 1 - 0.5 / 5),  # half of a cell of five nodes
        (TABLE.replace("<td>b</td>", ""), 1 - 1 / 5),
        (TABLE.replace("<td>a", "<td colspan=2>a"), 1 - 1 / 5),
        ("<table><tr><td>a<td>b<tr><td>cd</table>", 1.0),  # end tags may be left out
        ("none", 0.0),
    ],
)
def test_known_similarities(prediction: str, expected: float) -> None:
    assert table_similarity(prediction, TABLE) == pytest.approx(expected)


def test_text_around_a_table_does_not_count() -> None:
    assert html_table_score([TABLE], f"Here it is:\n```html\n{TABLE}\n```") == 1.0
    assert html_table_score([TABLE], "a | b") == 0.0


def test_markdown_is_compared_as_a_table() -> None:
    gold = "| a | b |\n|---|---|\n| cd | |"
    assert markdown_table_score([gold], f"```markdown\n{gold}\n```") == 1.0
    assert markdown_table_score([gold], gold.replace("cd", "cx")) == pytest.approx(1 - 0.5 / 6)


def test_charts_are_tables_of_two_columns() -> None:
    gold = {"title": "Sales", "2019": "12"}
    assert chart_score([gold], "```python\ndata = {'title': 'Sales', '2019': '12'}\n```") == 1.0
    assert chart_score([str(gold)], "{'title': 'Sales'}") == pytest.approx(1 - 3 / 6)
    assert chart_score([gold], "Sales: 12") == 0.0
    with pytest.raises(ValueError, match="'Sales' is no dictionary"):
        chart_score(["Sales"], str(gold))
