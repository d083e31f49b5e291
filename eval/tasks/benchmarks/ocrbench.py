"""OCRBench: reading text in images; right if an accepted answer occurs in the output.

Ten categories in five groups, no judge model. Rules of the published scorer: outside handwritten
mathematics both sides are lower-cased and stripped, and newlines become spaces; in handwritten
mathematics case is significant and all spaces are removed. Tabs, double spaces, accents and
full-width forms are significant everywhere. Liu et al., "OCRBench: On the Hidden Mystery of OCR in
Large Multimodal Models", arXiv 2305.07895, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..files.answer_cells import accepted_answers
from ..files.rows import BenchmarkTable, Findings, Row
from ..prompts import QWEN2, SHORT_WORDS, Content, images_first
from ..task import Fields, TaskScore, Unit, is_broken, percent, row_answer, row_unit

METRIC = "accuracy"
REQUIRED = ("question", "answer", "category")
HANDWRITTEN_MATH = "Handwritten Mathematical Expression Recognition"
_RECOGNITION = "Text Recognition"
GROUPS: Mapping[str, str] = {
    "Regular Text Recognition": _RECOGNITION,
    "Irregular Text Recognition": _RECOGNITION,
    "Artistic Text Recognition": _RECOGNITION,
    "Handwriting Recognition": _RECOGNITION,
    "Digit String Recognition": _RECOGNITION,
    "Non-Semantic Text Recognition": _RECOGNITION,
    "Scene Text-centric VQA": "Scene Text-centric VQA",
    "Doc-oriented VQA": "Doc-oriented VQA",
    "Key Information Extraction": "Key Information Extraction",
    HANDWRITTEN_MATH: HANDWRITTEN_MATH,
}


def content(row: Row, style: str) -> Content:
    """Build the user turn: the image, then the question (Qwen2-VL: with a request for brevity)."""
    return images_first(row, row["question"] + (SHORT_WORDS if style == QWEN2 else ""))


def fields(row: Row) -> Fields:
    """Return the values of a row that scoring and reports need."""
    return {
        "id": str(row.index),
        "unit": str(row.index),
        "question": row.get("question"),
        "answers": accepted_answers(row.get("answer")),
        "category": row.get("category", "none"),
        "group": GROUPS.get(row.get("category"), "none"),
    }


def check(table: BenchmarkTable, *, published: bool) -> Findings:
    """Check that every row has a question, an answer and one of the ten categories.

    Args:
        table: the file.
        published: not used; see `mmbench.check`.
    """
    findings = Findings()
    for row in table.rows:
        for column in ("question", "answer"):
            if column not in row.values:
                findings.faults[row.index] = f"it has no {column}"
        if (category := row.get("category")) not in GROUPS:
            findings.faults[row.index] = f"OCRBench has no category {category[:40]!r}"
    return findings


def ocrbench_hit(category: str, answers: Sequence[str], prediction: object) -> bool:
    """Whether any accepted answer occurs in the prediction; an empty one always does.

    Args:
        category: category of the row; decides whether case and spaces are significant.
        answers: accepted answers.
        prediction: the model's answer; converted by `str()` if it is not a string.
    """
    fold = _fold_math if category == HANDWRITTEN_MATH else _fold_text
    text = fold(str(prediction))
    return any(fold(answer) in text for answer in answers)


def _fold_text(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _fold_math(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score by containment.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        profile: not used; there are no options to extract.
    """
    units = []
    for item in items:
        answer = row_answer(item, predictions)
        hit = ocrbench_hit(item["category"], item["answers"], answer)
        units.append(row_unit(item, hit, _fold_text(answer)))
    return TaskScore(
        metric=METRIC,
        units=tuple(units),
        n_rows=len(items),
        broken=sum(map(is_broken, items)),
        parse_failures=0,
        refusals=0,
        extra={
            group: percent(unit.correct for unit in units if unit.group == group)
            for group in dict.fromkeys(GROUPS.values())
            if any(unit.group == group for unit in units)
        },
        table=score_table(units),
    )


def score_table(units: Sequence[Unit]) -> dict[str, Any]:
    """Return points per group, their sum, and the sum over ten (also for subsets, as published)."""
    table: dict[str, Any] = dict.fromkeys(GROUPS.values(), 0)
    for unit in units:
        table[unit.group] = table.get(unit.group, 0) + int(unit.correct)
    final = sum(table.values())
    return {**table, "Final Score": final, "Final Score Norm": final / 10}
