"""The main job: quantize a model, evaluate the original and the result, and report the cost.

``OUT`` holds ``plan.json``, ``checkpoint/``, ``eval/base/``, ``eval/candidate/`` and ``report/``.
Each of them is finished on its own: the checkpoint and the report appear whole, answers are
appended as they come. The same command therefore goes on wherever it was stopped.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.atomic import write_json
from ..common.output_dir import claim, is_same, refuse_foreign
from ..common.progress import Reporter
from ..quant.api import Job
from ..quant.config import BUILTIN_MODELS
from ..quant.resolve import Source
from . import compare, evaluate
from .config import RunRequest
from .fidelity.noise import KINDS, UNITS, read_noise
from .fidelity.noise_floor import measure_batch_floor, measure_dtype_floor
from .fidelity.perplexity import text_identity
from .report.report import check_margin
from .resolve import check_questions, open_tasks, open_text, refuse_leak
from .results import read_fidelity, read_run
from .speed_comparison import time_in_alternation
from .tasks.registry import where_to_get
from .tasks.task import Task

PROPOSED = "MMBench_DEV_EN"
OURS = ("plan.json", "checkpoint", "eval", "report")


def run(request: RunRequest, reporter: Reporter) -> dict[str, Any]:
    """Do what is not done yet of a run; return the content of ``report.json``.

    Raises:
        FileNotFoundError: the model, a benchmark file or the calibration source does not exist.
        ValueError: something does not fit, a picture is used for both calibration and evaluation,
            or the output folder holds other work.
    """
    if request.questions.benches is None and request.model not in BUILTIN_MODELS:
        raise ValueError(
            f"{request.model}: the built-in benchmark files are drawings and say nothing about "
            f"it; give real ones, such as --bench {PROPOSED}=PATH; {where_to_get(PROPOSED)}"
        )
    check_margin(request.margin)
    check_questions(request.questions, request.settings)
    refuse_foreign(request.out)
    source = Source.find(request.model, request.settings)
    job = Job.prepare(source, request.recipe, request.calibration, tp=request.tp)
    tasks = open_tasks(request.questions, source, job.processor)
    text = open_text(request.questions)
    refuse_leak(job.samples, tasks)
    made_from = job.fingerprint()
    # All that the evaluations' own fingerprints hold must be in here or in that of the checkpoint:
    # a difference that is found only there could not be answered with --overwrite.
    asked = {
        "tasks": {task.name: dict(task.fingerprint) for task in tasks},
        "text": text and text_identity(text),
        "noise": _noise(request),
        "batch_size": request.questions.batch_size,
        "seed": request.settings.seed or 0,
    }
    out = request.out
    flags: dict[str, Any] = {"overwrite": request.overwrite, "fresh": request.fresh}
    if claim(out, {**made_from, **asked}, ours=OURS, **flags):
        reporter.note(f"resuming {out}")
    write_json(out / "plan.json", job.plan.to_dict())
    checkpoint = out / "checkpoint"
    if is_same(checkpoint, made_from):
        reporter.note(f"{checkpoint} is finished already")
        job.warn(reporter)
    else:
        job.make(checkpoint, made_from, reporter, **flags)
    if not _is_evaluated(out, tasks, _noise(request)):
        _evaluate_both(job, checkpoint, tasks, text, request, reporter)
    time_in_alternation(
        out / "eval" / "base",
        out / "eval" / "candidate",
        tasks,
        source,
        Source.find(str(checkpoint), request.settings),
        batch_size=request.questions.batch_size,
        reporter=reporter,
    )
    return _report(job, request)


def _noise(request: RunRequest) -> int:
    return UNITS if request.questions.noise is None else request.questions.noise


def _is_evaluated(out: Path, tasks: Sequence[Task], noise: int) -> bool:
    """Whether both evaluations are stored whole, so that no model need be loaded."""
    base, candidate = out / "eval" / "base", out / "eval" / "candidate"
    if not ((base / "run.json").is_file() and (candidate / "run.json").is_file()):
        return False
    names = {task.name for task in tasks}
    runs = read_run(base), read_run(candidate)
    if any(set(r.tasks) != names or not all(t.is_complete for t in r.tasks.values()) for r in runs):
        return False
    try:
        measured = all(read_fidelity(task) is not None for task in runs[1].tasks.values())
    except ValueError:  # measured in part
        return False
    floors = [read_noise([task]) for task in runs[0].tasks.values()]
    return measured and (not noise or all(len(floor) == len(KINDS) for floor in floors))


def _evaluate_both(
    job: Job,
    checkpoint: Path,
    tasks: Sequence[Task],
    text: str | None,
    request: RunRequest,
    reporter: Reporter,
) -> None:
    """Evaluate the original and the written checkpoint in the same setup, and their distance."""
    folders = request.out / "eval"
    base = job.source.load()
    with reporter.stages("original", again="expectations") as update:
        evaluate(
            base,
            job.processor,
            tasks,
            folders / "base",
            batch_size=request.questions.batch_size,
            name=request.model,
            source=job.source.folder,
            seed=request.settings.seed or 0,
            is_reference=True,
            text=text,
            on_progress=update,
        )
    if units := _noise(request):
        sizes = {"batch_size": request.questions.batch_size, "units": units}
        measure_batch_floor(
            folders / "base", tasks, base, job.processor, **sizes, reporter=reporter
        )
        dtype = base.dtype
        del base  # before it is loaded in another dtype
        measure_dtype_floor(
            folders / "base", tasks, job.source, dtype=dtype, **sizes, reporter=reporter
        )
    else:
        del base
    candidate = Source.find(str(checkpoint), request.settings)
    with reporter.stages("quantized", again="fidelity") as update:
        evaluate(
            candidate.load(),
            candidate.processor(),
            tasks,
            folders / "candidate",
            batch_size=request.questions.batch_size,
            reference=folders / "base",
            text=text,
            name=str(checkpoint),
            source=checkpoint,
            seed=request.settings.seed or 0,
            on_progress=update,
        )


def _report(job: Job, request: RunRequest) -> dict[str, Any]:
    """Write the report, with what the candidate was made of."""
    return compare(
        request.out / "eval" / "base",
        request.out / "eval" / "candidate",
        request.out / "report",
        margin=request.margin,
        about={
            "recipe": job.recipe.to_dict(),
            "calibration": job.describe_calibration(),
            "command": request.command(),
        },
    )
