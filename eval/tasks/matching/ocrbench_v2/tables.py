"""Tables and charts by the edit distance of their trees (TEDS).

Zhong et al., "Image-based table recognition: data, model, and evaluation", ECCV 2020. The value
is 1 - distance / nodes of the larger table, or 0 if that is negative. HTML is read by the standard
library, with the end tags of cells and rows that HTML allows to leave out; other repairs of damaged
HTML are not those of libxml2, which the authors use.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from typing import NamedTuple

from ..anls import levenshtein
from ..tree_distance import Tree, tree_distance

_FENCE = re.compile(r"```(?:python|json)?\n(.*?)\n```", re.DOTALL | re.IGNORECASE)
_ASSIGNMENT = re.compile(r"\A\s*\w+\s*=\s*")
_COMMENT = re.compile(r"#.*")
_DEPTH = 200  # of elements; deeper ones are children of the deepest
_VOID = frozenset(("br", "hr", "img", "input", "col", "wbr", "meta", "link"))
_CLOSES: Mapping[str, frozenset[str]] = {
    "td": frozenset(("td", "th")),
    "th": frozenset(("td", "th")),
    "tr": frozenset(("td", "th", "tr")),
    "thead": frozenset(("td", "th", "tr", "thead", "tbody", "tfoot")),
    "tbody": frozenset(("td", "th", "tr", "thead", "tbody", "tfoot")),
    "tfoot": frozenset(("td", "th", "tr", "thead", "tbody", "tfoot")),
}
"""Open elements that an element ends, as far as they are within the same table."""


class Cell(NamedTuple):
    """An element of a table; of a cell (`td`), its content as characters and tags."""

    tag: str
    colspan: int = 1
    rowspan: int = 1
    content: tuple[str, ...] = ()


class _Element:
    def __init__(self, tag: str, spans: tuple[int, int] = (1, 1)) -> None:
        self.tag, self.spans = tag, spans
        self.parts: list[str | _Element] = []

    def elements(self) -> list[_Element]:
        return [part for part in self.parts if isinstance(part, _Element)]

    def count(self) -> int:
        return sum(1 + element.count() for element in self.elements())

    def tokens(self) -> list[str]:
        """Return the characters and tags of the content."""
        tokens: list[str] = []
        for part in self.parts:
            if isinstance(part, str):
                tokens += part
            else:
                tokens += [f"<{part.tag}>", *part.tokens(), f"</{part.tag}>"]
        return tokens

    def tree(self) -> Tree[Cell]:
        if self.tag == "td":
            return Tree(Cell(self.tag, *self.spans, tuple(self.tokens())))
        return Tree(Cell(self.tag), [element.tree() for element in self.elements()])


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = _Element("root")
        self._open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        while self._open[-1].tag in _CLOSES.get(tag, ()):
            self._open.pop()
        values = dict(attrs)
        spans = int(values.get("colspan") or 1), int(values.get("rowspan") or 1)
        element = _Element(tag, spans)
        self._open[-1].parts.append(element)
        if tag not in _VOID and len(self._open) < _DEPTH:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        tags = [element.tag for element in self._open]
        if tag in tags[1:]:
            del self._open[len(tags) - 1 - tags[::-1].index(tag) :]

    def handle_data(self, data: str) -> None:
        self._open[-1].parts.append(data)


def _read_table(html: str) -> _Element | None:
    """Return the first table; None without one.

    Raises:
        ValueError: a span is not a number, or the text is no HTML.
    """
    parser = _Parser()
    try:
        parser.feed(html)
        parser.close()
    except AssertionError as error:  # the parser's, for damaged declarations
        raise ValueError(str(error)) from error
    pending = [parser.root]
    while pending:
        element = pending.pop(0)
        if element.tag == "table":
            return element
        pending = element.elements() + pending
    return None


def table_similarity(first: str, second: str) -> float:
    """Return the similarity of the first tables of two HTML texts, in [0, 1]; 0 without one."""
    try:
        tables = [_read_table(html) for html in (first, second)]
    except ValueError:
        return 0.0
    if tables[0] is None or tables[1] is None:
        return 0.0
    nodes = max(table.count() for table in tables if table)
    distance = tree_distance(tables[0].tree(), tables[1].tree(), _rename)
    return max(1 - distance / nodes, 0.0) if nodes else float(distance == 0)


def _rename(first: Cell, second: Cell) -> float:
    if first[:3] != second[:3]:
        return 1.0
    if first.content == second.content:
        return 0.0
    longest = max(len(first.content), len(second.content))
    return levenshtein(first.content, second.content) / longest


def html_table_score(answers: list[object], prediction: str) -> float:
    """Similarity of the first `<body>` or `<table>` of a prediction to the answer; 0 without."""
    line = prediction.replace("\n", "")
    tag = "<body" if "<body" in line else "<table"
    if tag not in line:
        return 0.0
    return table_similarity(_wrap(line[line.index(tag) :]), _wrap(str(answers[0])))


def _wrap(html: str) -> str:
    """Add a missing tag of the table."""
    html = html.replace("\n", "")
    begin = "" if "<table" in html else "<table>"
    end = "" if "</table>" in html else "</table>"
    return begin + html + end


def markdown_table_score(answers: list[object], prediction: str) -> float:
    """Similarity of tables in Markdown; the second line is the rule under the header."""
    return table_similarity(_markdown_html(prediction), _markdown_html(str(answers[0])))


def _markdown_html(text: str) -> str:
    # The authors strip these letters, not the word.
    lines = text.strip("`markdown").strip("`").strip().split("\n")
    rows = [line.strip().split("|")[1:-1] for line in (lines[0], *lines[2:])]
    cells = [[" " if set(cell) == {" "} else cell.strip() for cell in row] for row in rows]
    return _table_html(cells)


def chart_score(answers: list[object], prediction: str) -> float:
    """Similarity of a dictionary of a chart's values to the answer, as tables of two columns.

    Raises:
        ValueError: the answer is not a dictionary, or the text of one.
    """
    gold = answers[0] if isinstance(answers[0], dict) else _read_chart(str(answers[0]))
    if not gold:
        raise ValueError(f"its answer {str(answers[0])[:40]!r} is no dictionary")
    values = _read_chart(prediction)
    return table_similarity(_chart_html(values), _chart_html(gold)) if values else 0.0


def _read_chart(prediction: str) -> dict[object, object]:
    """Read the longest code block, or all: a literal up to its last brace, without a name."""
    content = max(_FENCE.findall(prediction), key=len, default=prediction.strip())
    content = _COMMENT.sub("", _ASSIGNMENT.sub("", content.strip(), count=1))
    content = content[: content.rfind("}") + 1] or content
    try:
        values = ast.literal_eval(content)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _chart_html(values: dict[object, object]) -> str:
    # The authors join the characters of a value by spaces.
    return _table_html([[str(key), " ".join(str(value))] for key, value in values.items()])


def _table_html(rows: list[list[str]]) -> str:
    lines = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>".replace("\n", "")
