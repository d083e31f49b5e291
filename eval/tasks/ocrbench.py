"""OCRBench: read what stands in a picture; right if an accepted answer occurs in the output.

Ten categories in five groups, no judge. Rules of the published scorer: outside handwritten
mathematics both sides are lower-cased, stripped, newlines become spaces; in handwritten
mathematics case counts and all spaces go. Tabs, double spaces, accents and full-width forms
count everywhere. Liu et al., "OCRBench: On the Hidden Mystery of OCR in Large Multimodal
Models", arXiv 2305.07895, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .files.answer_cells import accepted_answers
from .files.table import Findings, Row, Table
from .prompts import QWEN2, SHORT_WORDS, Content, images_first
from .task import Fields, TaskScore, Unit, is_broken, percent

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
    """Build the user turn: the picture, then the bare question (Qwen2-VL: asked for brevity)."""
    return images_first(row, row["question"] + (SHORT_WORDS if style == QWEN2 else ""))


def fields(row: Row) -> Fields:
    """What scoring and reports need of a row."""
    return {
        "id": str(row.index),
        "unit": str(row.index),
        "question": row.get("question"),
        "answers": accepted_answers(row.get("answer")),
        "category": row.get("category", "none"),
        "group": GROUPS.get(row.get("category"), "none"),
    }


def check(table: Table, *, published: bool) -> Findings:
    """Check that every row has a question, an answer and one of the ten categories."""
    found = Findings()
    for row in table.rows:
        for column in ("question", "answer"):
            if column not in row.values:
                found.faults[row.index] = f"it has no {column}"
        if (category := row.get("category")) not in GROUPS:
            found.faults[row.index] = f"OCRBench has no category {category[:40]!r}"
    return found


def ocrbench_hit(category: str, answers: Sequence[str], prediction: object) -> bool:
    """Whether any accepted answer occurs in the prediction; an empty one always does."""
    fold = _fold_math if category == HANDWRITTEN_MATH else _fold_text
    said = fold(str(prediction))
    return any(fold(answer) in said for answer in answers)


def _fold_text(text: str) -> str:
    return text.lower().strip().replace("\n", " ")


def _fold_math(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score by containment; `profile` plays no part, there are no options to extract."""
    units = []
    for item in items:
        said = "" if is_broken(item) else predictions[item["id"]]
        hit = ocrbench_hit(item["category"], item["answers"], said)
        units.append(
            Unit(
                id=item["unit"],
                correct=hit and not is_broken(item),
                category=item["category"],
                group=item["group"],
                rows=(item["id"],),
                answers=(_fold_text(said),),
            )
        )
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
    """Points per group, their sum, and the sum over ten (on subsets too, as published)."""
    table: dict[str, Any] = dict.fromkeys(GROUPS.values(), 0)
    for unit in units:
        table[unit.group] = table.get(unit.group, 0) + int(unit.correct)
    final = sum(table.values())
    return {**table, "Final Score": final, "Final Score Norm": final / 10}
