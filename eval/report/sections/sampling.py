"""Scores of several sampled answers to each question: of each sample, and of their mean."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import stdev
from typing import TYPE_CHECKING, Any

from ...stats.paired import image_clusters
from ...stats.sample_means import score_interval
from ...tasks.task import TaskScore

if TYPE_CHECKING:
    from ...results import StoredTask

SIDES = ("base", "candidate")


def sampling_section(task: StoredTask, score: TaskScore) -> dict[str, Any]:
    """Return `{"sampling": ...}` of a task with sampled answers; empty for greedy ones.

    Args:
        task: its answers.
        score: of all samples.

    Returns:
        `samples`, their number; `scores` of the samples in percent, with `sd`, their standard
        deviation (None for one sample); `ci95` of the mean score in percent, clustered by question
        and by image.
    """
    if task.samples is None:
        return {}
    scores = [each.percent for each in task.sample_scores()]
    cluster_of = image_clusters(task.items)
    values = [unit.value for unit in score.units]
    clusters = [cluster_of[unit.id] for unit in score.units]
    interval = score_interval(values, clusters, samples=task.samples)
    section = {
        "samples": task.samples,
        "scores": scores,
        "sd": stdev(scores) if len(scores) > 1 else None,
        "ci95": [100 * interval.low, 100 * interval.high],
    }
    return {"sampling": section}


def compare_sampling(
    tasks: tuple[StoredTask, StoredTask], scores: tuple[TaskScore, TaskScore]
) -> dict[str, Any]:
    """Return `{"sampling": ...}` of a benchmark in `report.json`; empty for greedy answers.

    Args:
        tasks: answers of the base and the candidate, with the same number of samples.
        scores: of both.

    Returns:
        `samples`, and for `base` and `candidate` the `sampling_section`.
    """
    if tasks[0].samples is None:
        return {}
    parts = map(sampling_section, tasks, scores)
    sides = {side: part["sampling"] for side, part in zip(SIDES, parts, strict=True)}
    return {"sampling": {"samples": tasks[0].samples, **sides}}


def describe_sampling(report: Mapping[str, Any]) -> str | None:
    """A sentence on sampled answers; None if the answers are greedy.

    Args:
        report: content of `report.json`.
    """
    samples = report["generation"]["evaluated"].get("samples")
    if samples is None:
        return None
    settings = report["generation"]["evaluated"]
    limits = [f"temperature {settings['temperature']:g}"]
    limits += [f"top-p {settings['top_p']:g}"] if settings["top_p"] < 1 else []
    limits += [f"top-k {settings['top_k']}"] if settings["top_k"] else []
    answers = "one answer was" if samples == 1 else f"{samples} answers were"
    seeds = "with the same seeds for both models" if settings["seeds"] else "without seeds"
    return (
        f"To each question {answers} sampled ({', '.join(limits)}), {seeds}. A question "
        "counts by the mean of its answers, and intervals are clustered by question; it flips if "
        "more than half of its answers are right for one model only. "
        "Divergences are measured along the base's first answer to each question."
    )
