"""Flips: questions whose answer changed between right and wrong, or from one wrong to another.

The counts are in `stats.paired`; the list needs the stored texts of a run, which `stats` does not
know.
"""

from __future__ import annotations

from typing import Any

from ..results import StoredTask
from ..stats.paired import changed_wrong
from ..tasks.task import Fields, TaskScore, Unit, is_broken


def list_flips(
    base: StoredTask, candidate: StoredTask, base_score: TaskScore, cand_score: TaskScore
) -> list[dict[str, Any]]:
    """List the units whose answer changed, each with the row that decided.

    Args:
        base: the base's answers.
        candidate: the candidate's answers.
        base_score: score of `base`.
        cand_score: score of `candidate`, over the same units.

    Returns:
        Per unit its `benchmark`, `unit`, `change` (such as `right_to_wrong`), `category`, the `row`
        shown and all `rows_that_differ`, and of that row `question`, `choices`, `gold`, and the
        texts of `base` and `candidate`.
    """
    items = {item["id"]: item for item in base.items}
    flips = []
    for b, c in zip(base_score.units, cand_score.units, strict=True):
        if b.correct == c.correct and not changed_wrong(b, c):
            continue
        differing = [
            row
            for row in b.rows
            if not is_broken(items[row])
            and base.predictions[row].prediction != candidate.predictions[row].prediction
        ]
        # "B" and "B." differ as texts but not as extracted answers: prefer a row whose extracted
        # answers differ. There is none if only the upper and lower case of a formula changed,
        # which counts in its score but is not part of the extracted answer.
        extracted = zip(b.rows, b.answers, c.answers, strict=True)
        row = next((row for row, before, after in extracted if before != after), differing[0])
        flips.append(
            {
                "benchmark": base.name,
                "unit": b.id,
                "change": f"{_word(b)}_to_{_word(c)}",
                "category": b.category,
                "row": row,
                "rows_that_differ": differing,
                "question": items[row]["question"],
                "choices": items[row].get("choices") or None,
                "gold": _gold(items[row]),
                "base": base.predictions[row].prediction,
                "candidate": candidate.predictions[row].prediction,
            }
        )
    return flips


def _word(unit: Unit) -> str:
    return "right" if unit.correct else "wrong"


def _gold(item: Fields) -> str:
    choices = item.get("choices", {})
    golds = [str(answer) for answer in item.get("answers") or [item.get("answer")]]
    return " / ".join(f"{g}. {choices[g]}" if g in choices else g for g in golds)
