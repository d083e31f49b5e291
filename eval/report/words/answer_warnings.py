"""Warnings about answers that are cut off or repeat themselves, and about reasoning in answers.

A warning says why a score may not show what a model can do. Unlike the rules of `health`, which
need a majority of the answers, warnings leave the verdict as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ....model.processing.reasoning_tags import END
from ...stats.statistics import count_outcomes, mcnemar
from ...tasks.generated.reasoning import NONE, OPENED, TAGS
from ..sections.lengths import LONGER_REASONING, REASONING, is_longer

if TYPE_CHECKING:
    from ...results import StoredTask

CUT_OFF_WARNING = 5.0
REPEATING_WARNING = 1.0
DIFFERENCE_P = 0.05


def model_warnings(side: str, task: StoredTask) -> list[str]:
    """Return the warnings about one model's answers on one benchmark.

    Args:
        side: `base`, `candidate` or `model`, for the text.
        task: its answers, to every sound item.
    """
    answers = task.answers
    counts = {
        "were cut off (at the token limit, or within the reasoning)": (
            sum(answer.is_cut_off for answer in answers),
            CUT_OFF_WARNING,
            "CUT_OFF_WARNING",
        ),
        "repeat themselves until they end": (
            len(task.repeating),
            REPEATING_WARNING,
            "REPEATING_WARNING",
        ),
    }
    warnings = [
        f"{count} of the {side}'s {len(answers)} answers {fault} ({limit} {threshold:g} %)"
        for fault, (count, threshold, limit) in counts.items()
        if answers and 100 * count / len(answers) > threshold
    ]
    tagged = sum(END in answer.prediction for answer in answers)
    if tagged and task.reasoning_rule == NONE:
        warnings.append(
            f"{tagged} of the {side}'s answers contain {END}, and the reasoning rule is {NONE}: "
            f"reasoning was scored as a part of the answer; evaluate with --reasoning {OPENED} or "
            f"{TAGS}"
        )
    return warnings


def length_warnings(lengths: Mapping[str, Any] | None) -> list[str]:
    """Return the warning about a candidate whose reasoning is shown to be longer than its base's.

    Args:
        lengths: see `sections.lengths.compare_lengths`; None without reasonings.
    """
    if lengths is None or not is_longer(lengths):
        return []
    ratio, (low, high) = lengths[REASONING]["ratio"], lengths[REASONING]["ci95"]
    return [
        f"the candidate's reasoning takes {ratio:.2f} times the tokens of the base's (95 % "
        f"interval {low:.2f} to {high:.2f}, LONGER_REASONING {LONGER_REASONING:g})"
    ]


def cut_off_shares(task: StoredTask) -> list[float]:
    """Return for each sound item the share of its samples that are cut off."""
    return _shares(task, [answer.is_cut_off for answer in task.answers])


def repeating_shares(task: StoredTask) -> list[float]:
    """Return for each sound item the share of its samples that repeat themselves."""
    return _shares(task, [answer.key in task.repeating for answer in task.answers])


def _shares(task: StoredTask, flags: Sequence[bool]) -> list[float]:
    """Mean of the flags of each item's answers, which are consecutive."""
    samples = task.samples or 1
    return [sum(flags[i : i + samples]) / samples for i in range(0, len(flags), samples)]


def pair_warnings(base: StoredTask, candidate: StoredTask) -> list[str]:
    """Return the warnings about both models' answers on one benchmark, and their differences.

    Args:
        base: the base's answers.
        candidate: the candidate's answers to the same questions.
    """
    faults = {
        "were cut off": [cut_off_shares(task) for task in (base, candidate)],
        "repeat themselves": [repeating_shares(task) for task in (base, candidate)],
    }
    samples = base.samples or 1
    differing = [
        f"{samples * sum(before):.0f} of the base's answers and {samples * sum(after):.0f} of the "
        f"candidate's {fault}, more than chance explains (McNemar p {p:.2g}, DIFFERENCE_P "
        f"{DIFFERENCE_P:g})"
        for fault, (before, after) in faults.items()
        if before and (p := mcnemar(count_outcomes(before, after))) < DIFFERENCE_P
    ]
    return [
        *model_warnings("base", base),
        *model_warnings("candidate", candidate),
        *differing,
    ]
