"""Asking models, and judging what they said: the work behind ``eval`` and ``compare``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.differences import differences
from ..common.distributed import SINGLE_PROCESS, Communicator, broadcast_result, rank_zero_first
from ..common.output_dir import discard, refuse_foreign
from ..common.progress import Reporter
from ..model.processing.processor import Processor
from ..quant.config import Settings
from ..quant.resolve import Source
from . import compare, compare_many, evaluate
from .config import Questions
from .evaluation import find_reference
from .fidelity.noise_floor import measure_batch_floor, measure_dtype_floor
from .fidelity.perplexity import FILE as TEXT_FILE
from .fingerprint import run_fingerprint
from .report.speed_section import FILE as THROUGHPUT_FILE
from .report.speed_section import write_throughput
from .resolve import check_questions, open_tasks, open_text
from .results import QUANTIZATION, read_info, read_run
from .speed_comparison import time_in_alternation
from .tasks.task import Task

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
    comm: Communicator = SINGLE_PROCESS,
) -> dict[str, Any]:
    """Evaluate a model into a folder, resuming what is there; return its scores.

    Several processes share the batches; of these, the first one shows and writes.

    Raises:
        FileNotFoundError: the model, a benchmark file or the reference does not exist.
        ValueError: something does not fit, or ``out`` holds other work.
    """
    if questions.noise and comm.count > 1:
        raise ValueError("--noise is measured by one process; leave it out under torchrun")

    def open_all() -> tuple[Source, Processor, list[Task], str | None]:
        check_questions(questions, settings)
        refuse_foreign(out, RUN_FILE)
        source = Source.find(model, settings)
        processor = source.processor()
        tasks = open_tasks(questions, source, processor)
        return source, processor, tasks, open_text(questions)

    source, processor, tasks, text = rank_zero_first(comm, open_all)
    loaded = source.load()

    def setup() -> dict[str, Any]:
        return run_fingerprint(
            loaded,
            processor,
            batch_size=questions.batch_size,
            seed=settings.seed or 0,
            source=source.folder,
        )

    broadcast_result(comm, lambda: make_room(out, setup, tasks, overwrite=overwrite, fresh=fresh))
    with reporter.stages("evaluate", again="fidelity") as update:
        result = evaluate(
            loaded,
            processor,
            tasks,
            out,
            batch_size=questions.batch_size,
            reference=reference,
            is_reference=bool(questions.noise),
            text=text,
            name=source.name,
            source=source.folder,
            seed=settings.seed or 0,
            on_progress=update,
            comm=comm,
        )
    if questions.noise:
        sizes = {"batch_size": questions.batch_size, "units": questions.noise}
        measure_batch_floor(out, tasks, loaded, processor, **sizes, reporter=reporter)
        dtype = loaded.dtype
        del loaded  # before it is loaded in another dtype
        measure_dtype_floor(out, tasks, source, dtype=dtype, **sizes, reporter=reporter)
    elif reference is not None and comm.count == 1:
        del loaded  # before both models are opened
        _time_against(reference, out, tasks, source, questions.batch_size, reporter)
    return result.to_dict()


def _time_against(
    reference: Path,
    out: Path,
    tasks: Sequence[Task],
    source: Source,
    batch_size: int,
    reporter: Reporter,
) -> None:
    """Time the model beside the original that a reference was evaluated with."""
    try:
        folder = find_reference(read_run(reference))
    except ValueError as error:
        reporter.note(f"speed is not measured in alternation: {error}")
        write_throughput(reference, out, reason=f"not measured in alternation: {error}")
        return
    settings = replace(source.settings, activations="recipe", head="recipe")
    original = Source.find(str(folder), settings)
    time_in_alternation(
        reference, out, tasks, original, source, batch_size=batch_size, reporter=reporter
    )


def make_room(
    out: Path,
    setup: Callable[[], Mapping[str, Any]],
    tasks: Sequence[Task],
    *,
    overwrite: bool,
    fresh: bool,
) -> None:
    """Discard a stored evaluation: any if ``fresh``, one of another setup if ``overwrite``.

    One of another setup that holds no answer yet is no work and goes too. ``setup`` is called only
    if it matters: it may hash a whole checkpoint.
    """
    if not (out / RUN_FILE).is_file():
        return
    stored = read_info(out)
    known = {name: entry["fingerprint"] for name, entry in stored["tasks"].items()}
    if not (fresh or overwrite) and _has_answers(out, known):
        return
    is_stale = not fresh and (
        any(differences(known.get(t.name, t.fingerprint), t.fingerprint) for t in tasks)
        or bool(differences(stored["fingerprint"], setup()))
    )
    if fresh or is_stale:
        # What marks the folder as ours goes last: a kill halfway must leave it known.
        discard(out, [*known, QUANTIZATION, TEXT_FILE, THROUGHPUT_FILE, SCORES_FILE, RUN_FILE])


def _has_answers(out: Path, names: Iterable[str]) -> bool:
    files = [out / name / "predictions.jsonl" for name in names]
    return any(path.is_file() and path.read_bytes().count(b"\n") > 1 for path in files)


def compare_all(
    base: Path,
    candidates: Sequence[Path],
    out: Path,
    *,
    margin: float,
    across_engines: bool = False,
) -> dict[str, Any]:
    """Judge one candidate (a report) or several (a comparison, with a report for each).

    Raises:
        FileNotFoundError: a folder is no evaluation.
        ValueError: the evaluations are unfinished or cannot be compared.
    """
    if len(candidates) == 1:
        return compare(base, candidates[0], out, margin=margin, across_engines=across_engines)
    return compare_many(base, candidates, out, margin=margin, across_engines=across_engines)
