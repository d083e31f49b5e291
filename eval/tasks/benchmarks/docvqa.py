"""DocVQA and InfographicVQA: questions about documents, scored by the similarity of the answer.

Mathew et al., "DocVQA: A Dataset for VQA on Document Images", WACV 2021, and "InfographicVQA", WACV
2022; both use `matching.anls`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..matching.anls import anls, normalize
from ..task import Fields, TaskScore, percent
from .short_answers import REQUIRED, check, content, fields, score_answers

__all__ = ["METRIC", "REQUIRED", "check", "content", "fields", "score"]

METRIC = "ANLS"


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score by ANLS; a question with a similarity of 0 counts as wrong, others as right.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        profile: not used; there are no options to extract.
    """
    return score_answers(
        items,
        predictions,
        metric=METRIC,
        points=anls,
        normalize=normalize,
        extra=lambda units: {"similar": percent(unit.correct for unit in units)},
    )
