"""Paired results of a benchmark and its categories, as stored in a report."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from ..tasks.task import Fields, Unit, percent
from .clusters import components, design_effect
from .multiple_testing import FEW, benjamini_hochberg, detectable_difference
from .sample_means import difference_variance
from .sample_size import questions_still_needed
from .statistics import (
    CI_KIND,
    Interval,
    PairedOutcome,
    bounds_in_points,
    count_outcomes,
    judge,
    mcnemar,
    paired_interval,
)

Pair = tuple[Unit, Unit]
"""A unit scored for the base, and the same unit scored for the candidate."""


def image_clusters(items: Sequence[Fields]) -> dict[str, int]:
    """The cluster of each unit id; units with a common image share a cluster.

    Args:
        items: stored items; a unit without stored image names is its own cluster.
    """
    keys: dict[str, set[Hashable]] = {}
    for item in items:
        keys.setdefault(item["unit"], set()).update(item.get("pictures", ()))
    return dict(zip(keys, components(list(keys.values())), strict=True))


def paired_difference(pairs: Sequence[Pair], clusters: Sequence[Hashable]) -> dict[str, Any]:
    """The difference of two scores with its 95 % interval and p.

    Args:
        pairs: at least one.
        clusters: the cluster of each pair, see `image_clusters`.

    Returns:
        `delta` and `ci95` in points, in [-100, 100], `ci_kind`, `clusters` (their number),
        `design_effect` (of sampled answers below 1 if the means over the samples vary less than
        single answers), `mcnemar_p`, which assumes independent units, and `detectable` in points.
    """
    outcome, effect = _outcome(pairs), _effect(pairs, clusters)
    interval = paired_interval(outcome, design_effect=effect)
    return {
        "delta": 100 * outcome.delta,
        "ci95": _points(interval),
        "ci_kind": _describe_interval(pairs, outcome, effect),
        "clusters": len(set(clusters)),
        "design_effect": effect,
        "mcnemar_p": mcnemar(outcome),
        "detectable": 100 * detectable_difference(outcome, design_effect=effect),
    }


def judge_difference(
    pairs: Sequence[Pair], clusters: Sequence[Hashable], margin: float
) -> dict[str, Any]:
    """Judge the difference of two scores.

    Returns:
        The one-sided 95 % bounds `lower95` and `upper95` in points, `verdict`, and
        `questions_still_needed` for a PASS, see `sample_size`: 0 after PASS, None after FAIL.
    """
    effect = _effect(pairs, clusters)
    outcome = _outcome(pairs)
    bounds = bounds_in_points(outcome, design_effect=effect)
    needed = questions_still_needed(outcome, margin, design_effect=effect)
    return {
        "lower95": bounds.low,
        "upper95": bounds.high,
        "verdict": judge(bounds, margin),
        "questions_still_needed": needed,
    }


def count_flips(pairs: Sequence[Pair]) -> dict[str, int]:
    """Number of flips of each kind: from right to wrong, wrong to right, and wrong to wrong."""
    return {
        "right_to_wrong": sum(b.correct and not c.correct for b, c in pairs),
        "wrong_to_right": sum(c.correct and not b.correct for b, c in pairs),
        "wrong_to_wrong": sum(changed_wrong(base, candidate) for base, candidate in pairs),
    }


def changed_wrong(base: Unit, candidate: Unit) -> bool:
    """Whether both models are wrong with different answers."""
    return not base.correct and not candidate.correct and base.answers != candidate.answers


def breakdown(
    pairs: Sequence[Pair], clusters: Sequence[Hashable], by: Callable[[Unit], str]
) -> dict[str, dict[str, Any]]:
    """Scores of each category, with the flip counts of their difference.

    Returns:
        Per category `n`, `few` (fewer than `FEW` units), `base` and `candidate` in percent, `delta`
        and `ci95` in points, both kinds of flips, and `p_adjusted`: McNemar's p after Benjamini
        and Hochberg over these categories.
    """
    members: dict[str, list[int]] = {}
    for index, (base, _) in enumerate(pairs):
        members.setdefault(by(base), []).append(index)
    parts = {
        name: _part([pairs[i] for i in members[name]], [clusters[i] for i in members[name]])
        for name in sorted(members)
    }
    adjusted = benjamini_hochberg({name: part.pop("mcnemar_p") for name, part in parts.items()})
    return {name: {**part, "p_adjusted": adjusted[name]} for name, part in parts.items()}


def _part(pairs: Sequence[Pair], clusters: Sequence[Hashable]) -> dict[str, Any]:
    difference, flips = paired_difference(pairs, clusters), count_flips(pairs)
    return {
        "n": len(pairs),
        "few": len(pairs) < FEW,
        "base": percent(base.value for base, _ in pairs),
        "candidate": percent(candidate.value for _, candidate in pairs),
        "right_to_wrong": flips["right_to_wrong"],
        "wrong_to_right": flips["wrong_to_right"],
        **{key: difference[key] for key in ("delta", "ci95", "mcnemar_p")},
    }


def pool_languages(
    parts: Mapping[str, tuple[Sequence[Pair], Sequence[Fields]]], margin: float
) -> dict[str, Any]:
    """Pool the languages of a benchmark; a question in several languages is one cluster.

    Args:
        parts: pairs and stored items by the benchmark's name; a question has the same unit id, or
            the same image, in all of them.
        margin: allowed loss in points.

    Returns:
        `benchmarks`, `n`, both scores in percent, `paired_difference` and `judge_difference`.
    """
    keys: list[set[Hashable]] = []
    pairs: list[Pair] = []
    for task_pairs, items in parts.values():
        images: dict[str, set[Hashable]] = {}
        for item in items:
            images.setdefault(item["unit"], set()).update(item.get("pictures", ()))
        pairs += task_pairs
        keys += [{("unit", base.id), *images.get(base.id, ())} for base, _ in task_pairs]
    clusters = components(keys)
    return {
        "benchmarks": list(parts),
        "n": len(pairs),
        "base": percent(base.value for base, _ in pairs),
        "candidate": percent(candidate.value for _, candidate in pairs),
        **paired_difference(pairs, clusters),
        **judge_difference(pairs, clusters, margin),
    }


def _outcome(pairs: Sequence[Pair]) -> PairedOutcome:
    return count_outcomes([b.value for b, _ in pairs], [c.value for _, c in pairs])


def _effect(pairs: Sequence[Pair], clusters: Sequence[Hashable]) -> float:
    differences = [c.value - b.value for b, c in pairs]
    effect = design_effect(differences, clusters)
    samples = _samples(pairs)
    # Parts of a point within a sample are counted as they are: the interval is conservative.
    if samples == 0 or any(unit.value != unit.right_share for pair in pairs for unit in pair):
        return effect
    return effect * difference_variance(differences, samples)


def _samples(pairs: Sequence[Pair]) -> int:
    """Number of sampled answers of each unit; 0: greedy."""
    return len(pairs[0][0].hits)


def _describe_interval(pairs: Sequence[Pair], outcome: PairedOutcome, effect: float) -> str:
    kind = CI_KIND if outcome.moved is None else f"{CI_KIND} of fractional counts"
    if (samples := _samples(pairs)) > 1:
        kind = f"{kind}, means of {samples} samples"
    return kind if effect == 1 else f"{kind}, scaled by the design effect"


def _points(interval: Interval) -> list[float]:
    return [100 * interval.low, 100 * interval.high]
