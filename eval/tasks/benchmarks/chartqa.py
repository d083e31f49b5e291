"""ChartQA: questions about charts, scored by relaxed accuracy (`matching.relaxed`).

Half of the questions were written by people, half generated from captions (`augmented`); they are
the two categories. Masry et al., "ChartQA: A Benchmark for Question Answering about Charts with
Visual and Logical Reasoning", Findings of ACL 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..files.rows import Row
from ..matching.relaxed import relaxed_hit
from ..task import Fields, TaskScore, Unit, percent
from .short_answers import REQUIRED, check, content, score_answers
from .short_answers import fields as short_fields

__all__ = ["METRIC", "REQUIRED", "check", "content", "fields", "score"]

METRIC = "relaxed accuracy"
CATEGORIES = ("human", "augmented")


def fields(row: Row) -> Fields:
    """Return the values of a row that scoring and reports need."""
    return {**short_fields(row), "category": _category(row)}


def _category(row: Row) -> str:
    """Return the origin of a question, which published files name in `split` or `type`."""
    named = [row.get(column) for column in ("category", "type", "split")]
    for name in named:
        for category in CATEGORIES:
            if category in name.lower():
                return category
    return next(filter(None, named), "none")


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score by relaxed accuracy; `extra` has the scores of human and augmented questions.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        profile: not used; there are no options to extract.
    """
    return score_answers(
        items,
        predictions,
        metric=METRIC,
        points=lambda answers, answer: float(relaxed_hit(answers, answer)),
        normalize=lambda answer: answer.strip().lower(),
        extra=_by_origin,
    )


def _by_origin(units: Sequence[Unit]) -> dict[str, float]:
    parts = {name: [u.correct for u in units if u.category == name] for name in CATEGORIES}
    return {name: percent(hits) for name, hits in parts.items() if hits}
