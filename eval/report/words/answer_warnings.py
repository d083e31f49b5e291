"""Warnings about answers that are cut off or repeat themselves, and about reasoning in answers.

A warning says why a score may not show what a model can do. Unlike the rules of `health`, which
need a majority of the answers, warnings leave the verdict as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ....model.processing.reasoning_tags import END
from ...stats.statistics import count_outcomes, mcnemar
from ...tasks.generated.reasoning import NONE, OPENED, TAGS

if TYPE_CHECKING:
    from ...results import StoredTask

CUT_OFF_WARNING = 5.0
REPEATING_WARNING = 1.0
DIFFERENCE_P = 0.05


def model_warnings(side: str, task: StoredTask) -> list[str]:
    """Return the warnings about one model's answers on one benchmark.

    Args:
        side: `base`, `candidate` or `model`, for the text.
        task: its answers, one to every sound item.
    """
    answers = [task.predictions[item["id"]] for item in task.sound_items]
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


def pair_warnings(base: StoredTask, candidate: StoredTask) -> list[str]:
    """Return the warnings about both models' answers on one benchmark, and their differences.

    Args:
        base: the base's answers.
        candidate: the candidate's answers to the same questions.
    """
    ids = [item["id"] for item in base.sound_items]
    faults = {
        "were cut off": [
            [float(task.predictions[key].is_cut_off) for key in ids] for task in (base, candidate)
        ],
        "repeat themselves": [
            [float(key in task.repeating) for key in ids] for task in (base, candidate)
        ],
    }
    differing = [
        f"{sum(before):.0f} of the base's answers and {sum(after):.0f} of the candidate's {fault}, "
        f"more than chance explains (McNemar p {p:.2g}, DIFFERENCE_P {DIFFERENCE_P:g})"
        for fault, (before, after) in faults.items()
        if ids and (p := mcnemar(count_outcomes(before, after))) < DIFFERENCE_P
    ]
    return [
        *model_warnings("base", base),
        *model_warnings("candidate", candidate),
        *differing,
    ]
