"""Asking models, and judging what they said: the work behind ``eval`` and ``compare``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .eval import compare, compare_many, evaluate
from .eval.fingerprint import run_fingerprint
from .eval.predictions import differences
from .eval.results import QUANTIZATION, read_info
from .eval.tasks.task import Task
from .folders import discard, refuse_foreign
from .model.processing import Processor
from .model.qwen_vl import QwenVL
from .opening import Source, check_questions, open_tasks
from .progress import Reporter
from .requests import Questions, Settings

RUN_FILE = "run.json"
SCORES_FILE = "scores.json"


def evaluate_to(
    out: Path,
    *,
    model: str,
    questions: Questions,
    settings: Settings,
    reference: Path | None,
    overwrite: bool,
    fresh: bool,
    reporter: Reporter,
) -> dict[str, Any]:
    """Evaluate a model into a folder, resuming what is there; return its scores.

    Raises:
        FileNotFoundError: the model, a benchmark file or the reference does not exist.
        ValueError: something does not fit, or ``out`` holds other work.
    """
    check_questions(questions)
    refuse_foreign(out, RUN_FILE)
    source = Source.find(model, settings)
    tasks = open_tasks(questions, source)
    processor = source.processor()
    loaded = source.load()
    if (out / RUN_FILE).is_file():
        stale = overwrite and _is_stale(out, loaded, processor, tasks, source, questions)
        if fresh or stale:
            # What marks the folder as ours goes last: a kill halfway must leave it known.
            discard(out, [*read_info(out)["tasks"], QUANTIZATION, SCORES_FILE, RUN_FILE])
    with reporter.stages("evaluate", again="fidelity") as update:
        result = evaluate(
            loaded,
            processor,
            tasks,
            out,
            batch_size=questions.batch_size,
            reference=reference,
            name=source.name,
            source=source.folder,
            seed=settings.seed or 0,
            on_progress=update,
        )
    return result.to_dict()


def _is_stale(
    out: Path,
    model: QwenVL,
    processor: Processor,
    tasks: Sequence[Task],
    source: Source,
    questions: Questions,
) -> bool:
    """Whether a stored evaluation was made with another setup than the one asked for."""
    stored = read_info(out)
    setup = run_fingerprint(
        model,
        processor,
        batch_size=questions.batch_size,
        seed=source.settings.seed or 0,
        source=source.folder,
    )
    if differences(stored["fingerprint"], setup):
        return True
    known = {name: entry["fingerprint"] for name, entry in stored["tasks"].items()}
    return any(differences(known.get(t.name, t.fingerprint), t.fingerprint) for t in tasks)


def compare_all(
    base: Path, candidates: Sequence[Path], out: Path, *, margin: float
) -> dict[str, Any]:
    """Judge one candidate (a report) or several (a comparison, with a report for each).

    Raises:
        FileNotFoundError: a folder is no evaluation.
        ValueError: the evaluations are unfinished or cannot be compared.
    """
    if len(candidates) == 1:
        return compare(base, candidates[0], out, margin=margin)
    return compare_many(base, candidates, out, margin=margin)
