"""DocVQA: questions about scanned documents, scored by the similarity of the answer (`anls`).

Mathew et al., "DocVQA: A Dataset for VQA on Document Images", WACV 2021.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..files.answer_cells import accepted_answers
from ..files.rows import BenchmarkTable, Findings, Row
from ..matching.anls import anls, normalize
from ..prompts import QWEN2, SHORT_WORDS, SINGLE_WORD, Content, images_first
from ..task import Fields, TaskScore, is_broken, percent, row_answer, row_unit, tabulate_units

METRIC = "ANLS"
REQUIRED = ("question", "answer")


def content(row: Row, style: str) -> Content:
    """Build the user turn: the image, then the question with a request for brevity."""
    return images_first(row, row["question"] + (SHORT_WORDS if style == QWEN2 else SINGLE_WORD))


def fields(row: Row) -> Fields:
    """Return the values of a row that scoring and reports need."""
    return {
        "id": str(row.index),
        "unit": str(row.index),
        "question": row.get("question"),
        "answers": accepted_answers(row.get("answer")),
        "category": row.get("category", "none"),
        "group": row.l2_category or "none",
        "split": row.get("split"),
    }


def check(table: BenchmarkTable, *, published: bool) -> Findings:
    """Check that every row has a question and an answer.

    Args:
        table: the file.
        published: not used; see `mmbench.check`.
    """
    findings = Findings()
    for row in table.rows:
        for column in REQUIRED:
            if column not in row.values:
                findings.faults[row.index] = f"it has no {column}"
    return findings


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score by ANLS; a question with a similarity of 0 counts as wrong, others as right.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        profile: not used; there are no options to extract.
    """
    units = []
    for item in items:
        answer = row_answer(item, predictions)
        points = 0.0 if is_broken(item) else anls(item["answers"], answer)
        units.append(row_unit(item, points > 0, normalize(answer), points=points))
    return TaskScore(
        metric=METRIC,
        units=tuple(units),
        n_rows=len(items),
        broken=sum(map(is_broken, items)),
        parse_failures=0,
        refusals=0,
        extra={"similar": percent(unit.correct for unit in units)},
        table=tabulate_units(units, [item["split"] for item in items]),
    )
