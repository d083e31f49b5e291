"""Chance level: the expected score of guessing, and the lower bound of a score.

A guess draws one of a question's options, independently for each of its rotations: a question
with four options in circular evaluation is right with probability (1/4)^4. An open question cannot
be guessed (chance 0), unless the benchmark's open questions share a few answers, such as yes and
no: then one of these is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from scipy.special import betaincinv  # type: ignore[import-untyped]  # scipy has no annotations

from ..tasks.task import Fields, Unit, is_broken

CHANCE_CONFIDENCE = 0.95
"""Confidence at which a score must be shown to be above chance."""
ANSWER_CLASSES = 5
"""Largest number of distinct gold answers of open questions that count as options."""
ROWS_PER_CLASS = 10
"""Open questions per gold answer from which these count as options."""


def is_choice(item: Fields) -> bool:
    """Whether the answer to an item is one of its options."""
    return bool(item.get("choices")) and item.get("metric", "choice") == "choice"


def gold_answers(item: Fields) -> list[str]:
    """The accepted answers of an item: option letters, or texts."""
    answers = item.get("answers") or [item.get("answer")]
    return [str(answer) for answer in answers if answer is not None]


def chance_percent(items: Iterable[Fields], units: Sequence[Unit]) -> float | None:
    """The expected score of guessing.

    Args:
        items: stored items; broken ones count as wrong.
        units: scored units; a unit is right if all its rows are.

    Returns:
        Percent of the units, in [0, 100]; None without units.
    """
    rows = row_chances(list(items))
    if not units:
        return None
    return 100 * fmean(math.prod(rows[row] for row in unit.rows) for unit in units)


def row_chances(items: Sequence[Fields]) -> dict[str, float]:
    """Probability in [0, 1] that a guess is right, by item id."""
    classes = _answer_classes(items)
    return {item["id"]: _row_chance(item, classes) for item in items}


def _row_chance(item: Fields, classes: Mapping[str, float]) -> float:
    if is_broken(item):
        return 0.0
    if not is_choice(item):
        return classes.get(_class_of(item), 0.0)
    options = set(item["choices"])
    return len(options & set(gold_answers(item))) / len(options)


def _answer_classes(items: Sequence[Fields]) -> dict[str, float]:
    """Probability of each gold answer of open questions; empty unless there are only a few."""
    open_rows = [item for item in items if not is_broken(item) and not is_choice(item)]
    classes = {_class_of(item) for item in open_rows}
    enough = len(open_rows) >= ROWS_PER_CLASS * len(classes)
    if not (1 < len(classes) <= ANSWER_CLASSES and enough):
        return {}
    return dict.fromkeys(classes, 1 / len(classes))


def _class_of(item: Fields) -> str:
    return "\n".join(sorted(answer.casefold().strip() for answer in gold_answers(item)))


def lower_bound_percent(hits: float, n: int) -> float:
    """One-sided exact lower bound of a score, at `CHANCE_CONFIDENCE`.

    Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the
    binomial", Biometrika 26, 1934: a quantile of the beta distribution.

    Args:
        hits: number of right units, in [0, n]; of sampled answers the sum of the shares of samples
            in which a unit is right, for which the bound is conservative.
        n: number of units, at least 1.

    Returns:
        Percent of the units, in [0, 100 * hits / n].

    Example:
        >>> lower_bound_percent(0, 500), round(lower_bound_percent(9, 10), 1)
        (0.0, 60.6)
    """
    if hits == 0:
        return 0.0
    return 100 * float(betaincinv(hits, n - hits + 1, 1 - CHANCE_CONFIDENCE))
