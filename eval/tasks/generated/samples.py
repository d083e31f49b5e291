"""Scores of several sampled answers to each question.

Every sample of a benchmark is scored as a run of its own, in which a circular group counts as
always. The value of a unit is the mean of its values over the samples (Miller, "Adding Error Bars
to Evals", arXiv 2411.00640, section 3), so that the score is the mean of the runs' scores.
Scores do not depend on the order of the samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ..task import TaskScore, Unit


def combine_samples(scores: Sequence[TaskScore]) -> TaskScore:
    """Combine the scores of the samples of a benchmark.

    Args:
        scores: at least one, of the same units.

    Returns:
        Units with their mean value, right if they are right in more than half of the samples, and
        with the most frequent answer of each row (reports show the first sample with these
        answers); unreadable and refused answers of all samples; `extra` and `table` as means.
    """
    first = scores[0]
    return TaskScore(
        metric=first.metric,
        units=tuple(
            _combine(units) for units in zip(*(score.units for score in scores), strict=True)
        ),
        n_rows=first.n_rows,
        broken=first.broken,
        parse_failures=sum(score.parse_failures for score in scores),
        refusals=sum(score.refusals for score in scores),
        extra=_mean([score.extra for score in scores]),
        table=_mean([score.table for score in scores]),
    )


def _combine(units: Sequence[Unit]) -> Unit:
    first, hits = units[0], tuple(unit.correct for unit in units)
    correct = 2 * sum(hits) > len(hits)
    answers = tuple(map(_most_frequent, zip(*(unit.answers for unit in units), strict=True)))
    typical = [unit.correct == correct and unit.answers == answers for unit in units]
    return Unit(
        id=first.id,
        correct=correct,
        category=first.category,
        group=first.group,
        rows=first.rows,
        answers=answers,
        points=fmean(unit.value for unit in units),
        hits=hits,
        shown=typical.index(True) if any(typical) else hits.index(correct),
    )


def _most_frequent(answers: Sequence[str]) -> str:
    """The most frequent answer; of several the first in alphabetical order."""
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def _mean(values: Sequence[Any]) -> Any:
    """The mean of equal structures of numbers."""
    if isinstance(values[0], Mapping):
        return {key: _mean([value[key] for value in values]) for key in values[0]}
    return fmean(values)
