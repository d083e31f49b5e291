"""Flips: questions whose answer changed between right and wrong, or from one wrong to another.

The counts are in `stats.paired`; the list needs the stored texts of a run, which `stats` does not
know.
"""

from __future__ import annotations

from typing import Any

from ..answering.predictions import Prediction
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
        texts of `base` and `candidate`. Of sampled answers also `samples_right`: for both models
        whether each sample is right; the texts are then of one sample with the usual answer.
    """
    items = {item["id"]: item for item in base.items}
    flips = []
    for b, c in zip(base_score.units, cand_score.units, strict=True):
        if b.correct == c.correct and not changed_wrong(b, c):
            continue
        before, after = base.by_sample[b.shown], candidate.by_sample[c.shown]
        differing = [
            row
            for row in b.rows
            if not is_broken(items[row]) and before[row].prediction != after[row].prediction
        ]
        # "B" and "B." differ as texts but not as extracted answers: prefer a row whose extracted
        # answers differ. There is none if only the upper and lower case of a formula changed,
        # which counts in its score but is not part of the extracted answer.
        extracted = zip(b.rows, b.answers, c.answers, strict=True)
        row = next((row for row, old, new in extracted if old != new), None) or differing[0]
        flips.append(
            {
                "benchmark": base.name,
                "unit": b.id,
                "change": f"{_word(b)}_to_{_word(c)}",
                "category": b.category,
                "row": row,
                "rows_that_differ": differing,
                **_texts(items[row], before[row], after[row]),
                **_hits(b, c),
            }
        )
    return flips


def list_samples(base: StoredTask, candidate: StoredTask, count: int) -> list[dict[str, Any]]:
    """A few questions that did not flip, spread over the benchmark, as `list_flips` lists flips.

    Args:
        base: the base's answers.
        candidate: the candidate's answers.
        count: number of questions; fewer if there are not as many.

    Returns:
        Entries whose `change` is `both_right` or `both_wrong`.
    """
    items = {item["id"]: item for item in base.sound_items}
    pairs = zip(base.score().units, candidate.score().units, strict=True)
    same = [
        (b, c, row)
        for b, c in pairs
        if b.correct == c.correct and (row := next((r for r in b.rows if r in items), None))
    ]
    chosen = same[:: max(1, len(same) // count)][:count]
    return [
        {
            "benchmark": base.name,
            "unit": b.id,
            "change": f"both_{_word(b)}",
            "category": b.category,
            "row": row,
            **_texts(
                items[row],
                base.by_sample[b.shown][row],
                candidate.by_sample[c.shown][row],
            ),
            **_hits(b, c),
        }
        for b, c, row in chosen
    ]


def _texts(item: Fields, base: Prediction, candidate: Prediction) -> dict[str, Any]:
    """The question of a row, and both answers."""
    return {
        "question": item["question"],
        "choices": item.get("choices") or None,
        "gold": _gold(item),
        "base": base.prediction,
        "candidate": candidate.prediction,
    }


def _hits(base: Unit, candidate: Unit) -> dict[str, Any]:
    """Whether each sample of both models is right; empty for greedy answers."""
    if not base.hits:
        return {}
    return {"samples_right": {"base": list(base.hits), "candidate": list(candidate.hits)}}


def _word(unit: Unit) -> str:
    return "right" if unit.correct else "wrong"


def _gold(item: Fields) -> str:
    choices = item.get("choices", {})
    golds = [str(answer) for answer in item.get("answers") or [item.get("answer")]]
    return " / ".join(f"{g}. {choices[g]}" if g in choices else g for g in golds)
