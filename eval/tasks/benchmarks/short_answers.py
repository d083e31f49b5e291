"""What DocVQA, ChartQA and TextVQA share: an image, a question, and the texts that answer it.

A row is worth a number in [0, 1], the similarity of the answer to the accepted ones; the benchmarks
differ in that similarity.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..files.answer_cells import accepted_answers
from ..files.rows import BenchmarkTable, Findings, Row
from ..prompts import QWEN2, SHORT_WORDS, SINGLE_WORD, Content, images_first
from ..task import Fields, TaskScore, Unit, is_broken, row_answer, row_unit, tabulate_units

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


def score_answers(
    items: Sequence[Fields],
    predictions: Mapping[str, str],
    *,
    metric: str,
    points: Callable[[Sequence[str], str], float],
    normalize: Callable[[str], str],
    extra: Callable[[Sequence[Unit]], Mapping[str, float]],
) -> TaskScore:
    """Score each row by its similarity; one of 0 is wrong, any other right.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        metric: name of the score.
        points: similarity in [0, 1] of an answer to the accepted ones.
        normalize: the form of answers that is compared between models.
        extra: further metrics in percent.
    """
    units = []
    for item in items:
        answer = row_answer(item, predictions)
        value = 0.0 if is_broken(item) else points(item["answers"], answer)
        units.append(row_unit(item, value > 0, normalize(answer), points=value))
    return TaskScore(
        metric=metric,
        units=tuple(units),
        n_rows=len(items),
        broken=sum(map(is_broken, items)),
        parse_failures=0,
        refusals=0,
        extra=extra(units),
        table=tabulate_units(units, [item["split"] for item in items]),
    )
