"""Stages of a verb with their titles and estimated durations, for the time that is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...common.progress import format_seconds
from ...common.schedule import Expected
from ..tasks import REASONING
from ..tasks.task import Task, by_unit
from .workload import Passes

ORIGINAL, LOGPROBS = "evaluating the original:", "log-probabilities of the original:"
CHECKPOINT, DIVERGENCE = "evaluating the checkpoint:", "divergence from the original:"
MODEL, FROM_REFERENCE = "evaluating", "divergence from the reference:"
SERVED = "evaluating the served model:"
TIMING = "timing both models in alternation"
TIMING_BUDGETS = "timing all budgets in alternation"
EVALUATION = "evaluation"
"""Group of all stages that answer questions or read answers."""


def noise_titles(change: str) -> tuple[str, str]:
    """Return the titles of a noise measurement's two passes.

    Args:
        change: the changed part of the setup, such as `batch size 1`.
    """
    return f"noise floor, {change}:", f"noise floor, {change}, divergence:"


def budget_titles(budget: int) -> tuple[str, str]:
    """Return the titles of the two passes of an evaluation at a visual-token budget."""
    return f"evaluating at {budget} visual tokens:", f"divergence at {budget} visual tokens:"


def evaluation_stages(
    passes: Mapping[str, Passes], answering: str, reading: str | None, samples: int
) -> list[Expected]:
    """Return the stages of one model's evaluation: all answers first, then the second pass.

    Args:
        passes: of every benchmark.
        answering: title of the first pass.
        reading: title of the second one; None: there is none.
        samples: answers per question; the second pass reads one of them.
    """
    stages = [
        Expected(f"{answering} {name}", samples * each.answering, EVALUATION)
        for name, each in passes.items()
    ]
    if reading is not None:
        stages += [Expected(f"{reading} {n}", p.reading, EVALUATION) for n, p in passes.items()]
    return stages


def noise_stages(
    tasks: Sequence[Task], passes: Mapping[str, Passes], units: int, change: str
) -> list[Expected]:
    """Return the stages of one noise measurement.

    Args:
        tasks: the benchmarks.
        passes: of the benchmarks.
        units: questions of each benchmark.
        change: see `noise_titles`.
    """
    answering, reading = noise_titles(change)
    stages = []
    for task in tasks:
        share = min(1.0, units / max(1, len(by_unit(task.fields))))
        both = passes[task.name]
        for title, seconds in ((answering, both.answering), (reading, both.reading)):
            stages.append(Expected(f"{title} {task.name}", share * seconds, EVALUATION))
    return stages


def _describe_task(task: Task) -> str:
    """Describe the questions of a benchmark, and the limit of answers if the model reasons."""
    questions = f"{len(by_unit(task.fields))} questions"
    if (rule := task.fingerprint.get(REASONING)) is None:
        return questions
    limit = task.fingerprint["max_new_tokens"]
    return f"{questions}, reasoning by the rule {rule}, at most {limit} tokens with the answer"


def describe(action: str, tasks: Sequence[Task], out: object, seconds: float | None = None) -> str:
    """Describe what a verb is going to do in one line.

    Args:
        action: what is done with which model.
        tasks: the benchmarks.
        out: output folder; None: nothing is stored.
        seconds: estimated duration; None: not estimated.
    """
    benches = ", ".join(f"{task.name} ({_describe_task(task)})" for task in tasks)
    where = "answers are not stored" if out is None else f"output in {out}"
    time = "" if seconds is None else f", at least {format_seconds(seconds)}"
    return f"{action}; {benches}; {where}{time}"
