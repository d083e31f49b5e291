"""Lengths of reasonings and answers in tokens, and answers without an end or in a loop.

A quantized model may think longer than its base, or in circles, while its score stays; both make
its answers more expensive. Lengths are compared as the ratio of all tokens, with a bootstrap over
questions, and shares of answers as paired differences.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from ...answering.predictions import Prediction
from ...stats.clusters import design_effect
from ...stats.paired import image_clusters
from ...stats.ratio import ratio_interval
from ...stats.sample_means import difference_variance
from ...stats.statistics import count_outcomes, paired_interval

if TYPE_CHECKING:
    from ...results import StoredTask

LONGER_REASONING = 1.3
"""Ratio of the tokens of reasonings, candidate / base, above which a candidate's whole interval is
a finding."""
REASONING, ANSWER = "reasoning_tokens", "answer_tokens"
CUT_OFF, REPEATING = "cut_off", "repeating"
SIDES = ("base", "candidate")

Pair = tuple["StoredTask", "StoredTask"]
Counts = list[int | None]


def summarize_reasoning(answers: Sequence[Prediction]) -> dict[str, float | None] | None:
    """Count the answers with a reasoning, and its tokens; None if no answer has one.

    Returns:
        `answers`, `unfinished` (reasonings without an end), and `mean_tokens`, `median_tokens` and
        `p95_tokens` of a reasoning, unfinished ones included (95 % have at most `p95_tokens`); None
        if a server does not report the tokens of all of them.
    """
    with_reasoning = [answer for answer in answers if answer.reasoning is not None]
    if not with_reasoning:
        return None
    tokens = [answer.reasoning_tokens for answer in with_reasoning]
    known = sorted(count for count in tokens if count is not None)
    is_known = len(known) == len(tokens)
    return {
        "answers": len(with_reasoning),
        "unfinished": sum(bool(answer.is_unfinished) for answer in with_reasoning),
        "mean_tokens": fmean(known) if is_known else None,
        "median_tokens": median(known) if is_known else None,
        "p95_tokens": known[math.ceil(0.95 * len(known)) - 1] if is_known else None,
    }


def compare_lengths(base: StoredTask, candidate: StoredTask) -> dict[str, Any]:
    """Return `{"lengths": ...}` of a benchmark in `report.json`; empty without any reasoning.

    Returns:
        For `reasoning_tokens` and `answer_tokens` (those after the reasoning) of `base` and
        `candidate` the `mean` and `median` over all answers, the `ratio` of the totals, and its
        `ci95`; None where a server does not report tokens, and without an interval of
        `ratio_interval`. For `cut_off` and `repeating` the percent of the answers of `base` and
        `candidate`, `delta` in points and `ci95`.
    """
    tasks = base, candidate
    if not any(answer.reasoning is not None for task in tasks for answer in task.answers):
        return {}
    units = [item["unit"] for item in base.sound_items for _ in base.numbers]
    cluster_of = image_clusters(base.items)
    lengths: dict[str, Any] = {
        name: _compare_tokens(
            [[count(answer) for answer in task.answers] for task in tasks],
            [cluster_of[unit] for unit in units],
        )
        for name, count in ((REASONING, _reasoning_tokens), (ANSWER, _answer_tokens))
    }
    flags = {
        CUT_OFF: [[answer.is_cut_off for answer in task.answers] for task in tasks],
        REPEATING: [[answer.key in task.repeating for answer in task.answers] for task in tasks],
    }
    for name, (before, after) in flags.items():
        lengths[name] = _compare_shares(before, after, units, cluster_of)
    return {"lengths": lengths}


def is_longer(lengths: Mapping[str, Any] | None) -> bool:
    """Whether a candidate's reasoning is shown to exceed `LONGER_REASONING`.

    Args:
        lengths: result of `compare_lengths`; None without one.
    """
    interval = None if lengths is None else lengths[REASONING]["ci95"]
    return interval is not None and bool(interval[0] > LONGER_REASONING)


def repeats_more(lengths: Mapping[str, Any] | None) -> bool:
    """Whether more of a candidate's answers are shown to repeat themselves; argument as above."""
    return lengths is not None and bool(lengths[REPEATING]["ci95"][0] > 0)


def _reasoning_tokens(answer: Prediction) -> int | None:
    return 0 if answer.reasoning is None else answer.reasoning_tokens


def _answer_tokens(answer: Prediction) -> int | None:
    reasoning = _reasoning_tokens(answer)
    return None if reasoning is None or answer.n_tokens is None else answer.n_tokens - reasoning


def _compare_tokens(counts: Sequence[Counts], clusters: Sequence[Hashable]) -> dict[str, Any]:
    """Compare the tokens of the base's and the candidate's answers."""
    known = [[count for count in side if count is not None] for side in counts]
    sides = dict(zip(SIDES, map(_summarize, counts), strict=True))
    if None in sides.values() or not sum(known[0]):
        return {**sides, "ratio": None, "ci95": None}
    interval = ratio_interval(known[0], known[1], clusters)
    return {
        **sides,
        "ratio": sum(known[1]) / sum(known[0]),
        "ci95": interval and [interval.low, interval.high],
    }


def _summarize(counts: Counts) -> dict[str, float] | None:
    """Mean and median; None if a count is unknown."""
    known = [count for count in counts if count is not None]
    is_known = known and len(known) == len(counts)
    return {"mean": fmean(known), "median": median(known)} if is_known else None


def _compare_shares(
    before: Sequence[bool],
    after: Sequence[bool],
    units: Sequence[str],
    cluster_of: Mapping[str, int],
) -> dict[str, Any]:
    """Compare the shares of answers with a fault, by the mean share of each unit."""
    shares = [_unit_shares(flags, units) for flags in (before, after)]
    outcome = count_outcomes(list(shares[0].values()), list(shares[1].values()))
    differences = [shares[1][unit] - shares[0][unit] for unit in shares[0]]
    effect = design_effect(differences, [cluster_of[unit] for unit in shares[0]])
    # A unit with several answers, rotations or samples, has a share of them.
    effect *= difference_variance(differences, max(Counter(units).values()))
    interval = paired_interval(outcome, design_effect=effect)
    percents = [100 * sum(flags) / len(flags) for flags in (before, after)]
    return {
        **dict(zip(SIDES, percents, strict=True)),
        "delta": 100 * outcome.delta,
        "ci95": [100 * interval.low, 100 * interval.high],
    }


def _unit_shares(flags: Sequence[bool], units: Sequence[str]) -> dict[str, float]:
    by_unit: dict[str, list[bool]] = defaultdict(list)
    for flag, unit in zip(flags, units, strict=True):
        by_unit[unit].append(flag)
    return {unit: fmean(values) for unit, values in by_unit.items()}
