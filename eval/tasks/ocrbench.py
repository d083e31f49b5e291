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

from .answers import accepted_answers
from .prompts import QWEN2, SHORT_WORDS, Content, images_first
from .task import Fields, TaskScore, Unit, percent
from .tsv import Row, Table, fail_rows

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
        "question": row["question"],
        "answers": accepted_answers(row["answer"]),
        "category": row["category"],
        "group": GROUPS[row["category"]],
    }


def check(table: Table, *, published: bool) -> list[str]:
    """Check that every row has an answer and one of the ten categories.

    Raises:
        ValueError: rows that have not.
    """
    rows = table.rows
    fail_rows(table.path, "have no answer", [r.index for r in rows if "answer" not in r.values])
    unknown = [r.index for r in rows if r.get("category") not in GROUPS]
    fail_rows(table.path, "have a category that OCRBench does not know", unknown)
    return []


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
        said = predictions[item["id"]]
        units.append(
            Unit(
                id=item["unit"],
                correct=ocrbench_hit(item["category"], item["answers"], said),
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
        table[unit.group] += int(unit.correct)
    final = sum(table.values())
    return {**table, "Final Score": final, "Final Score Norm": final / 10}
