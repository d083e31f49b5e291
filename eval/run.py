"""The verb `run` of the Python API: quantize, evaluate both models, report.

The output folder holds `plan.json`, `checkpoint/`, `eval/base/`, `eval/candidate/` and `report/`.
Checkpoint and report appear complete; answers are appended one batch at a time. Each stage is
finished on its own, so that an interrupted run resumes at any point.

A call with other questions, another benchmark, a text for the perplexity, other rules for the
answers, or another number of threads extends a run: the checkpoint and all answers that are still
valid are kept. All else that
a stored number depends on must be as it was (`refused_differences`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.atomic import write_json
from ..common.differences import differences
from ..common.options import verb
from ..common.output_dir import claim, read_marker, refuse_foreign, sole_use
from ..common.progress import Reporter, reporting
from ..common.schedule import Schedule
from ..common.threads import use_threads
from ..quant.checkpoint.model_card import write_model_card
from ..quant.config import ModelSettings
from ..quant.job import Job
from ..quant.resolve import Source
from . import compare
from .answering.sampling import Decoding
from .answering.vision_features import FeatureCache
from .config import QuestionOptions, RunOptions
from .evaluation import evaluate_model, refresh
from .extension import (
    describe_changes,
    has_divergence,
    is_finished,
    keep_only,
    refused_differences,
)
from .fidelity.noise import NOISE_KINDS, UNITS, read_noise
from .fidelity.noise_floor import measure_batch_floor, measure_dtype_floor
from .fidelity.perplexity import identify_text, is_measured
from .fingerprint import THREADS, task_settings
from .own.advice import advise
from .planning.checks import check_questions, refuse_drawings
from .planning.schedule import run_stages
from .planning.stages import CHECKPOINT, DIVERGENCE, LOGPROBS, ORIGINAL, describe
from .report.card import scores_section
from .report.report import check_margin
from .resolve import open_tasks, open_text, refuse_leak
from .results import read_run
from .speed_comparison import time_in_alternation
from .stats.criterion import MARGIN_CRITERION
from .tasks.files.image_store import decoded_images
from .tasks.task import Task, by_unit

OWN_FILES = ("plan.json", "checkpoint", "eval", "report")


@verb(RunOptions)
def run(options: RunOptions) -> dict[str, Any]:
    """Quantize a model, evaluate the original and the checkpoint, and report the accuracy loss.

    An interrupted call resumes when it is repeated; a finished run is reported again, after
    further questions or benchmarks have been asked if the call names any.

    Returns:
        The content of `report.json`.

    Raises:
        FileNotFoundError: the model, a benchmark file or the calibration source does not exist.
        ValueError: an option does not fit, an image is used for both calibration and evaluation,
            or `out` holds other work or is in use.
    """
    use_threads(options.threads)
    with sole_use(Path(options.out)), reporting(options.progress) as reporter:
        return _Run(options, reporter).report()


class _Run:
    """The stages of one run."""

    def __init__(self, options: RunOptions, reporter: Reporter) -> None:
        self._options = options
        self._reporter = reporter
        self._candidate_settings = options.group(ModelSettings)
        self._settings = replace(self._candidate_settings, kv_cache="model")
        self._seed = options.seed or 0
        self._decoding = Decoding.of(options, self._seed)
        self._noise = UNITS if options.noise is None else options.noise
        self._out = Path(options.out)
        self._base = self._out / "eval" / "base"
        self._candidate = self._out / "eval" / "candidate"
        self._checkpoint = self._out / "checkpoint"

    def report(self) -> dict[str, Any]:
        """Complete the run and return its report."""
        options = self._options
        self._check()
        with self._reporter.step(f"reading {options.model}, calibration samples and benchmarks"):
            source = Source.find(options.model, self._settings)
            job = Job.prepare(source, options.recipe, options, options.format, options.tp)
            tasks = open_tasks(options.group(QuestionOptions), source, job.processor)
            text = open_text(options)
            refuse_leak(job.all_samples, tasks)
        for task in tasks:
            if task.kind == "own" and options.criterion == MARGIN_CRITERION:
                advice = advise(len(by_unit(task.fields)), options.margin)
                self._reporter.note(f"{task.name}: {advice}")
        self._quantize(job, tasks, text)
        self._note_changes(tasks)
        if self._is_evaluated(job, tasks, text):
            refresh(self._base, tasks)
            refresh(self._candidate, tasks)
        else:
            self._announce(job, tasks)
            self._evaluate_base(job, tasks, text)
            self._evaluate_candidate(job, tasks, text)
        time_in_alternation(
            self._base,
            self._candidate,
            tasks,
            source,
            Source.find(self._checkpoint, self._candidate_settings),
            batch_size=options.batch_size,
            reporter=self._reporter,
        )
        # The provenance of the candidate goes into the report with the scores.
        about = {
            "recipe": job.recipe.to_dict(),
            "calibration": job.describe_calibration(),
            "command": options.command(),
        }
        folder = self._out / "report"
        report = compare(
            self._base,
            self._candidate,
            folder,
            margin=options.margin,
            criterion=options.criterion,
            across_pixels=job.recipe.vision_input.max_pixels is not None,
            about=about,
        )
        write_model_card(self._checkpoint, job.base, scores_section(report))
        return report

    def _check(self) -> None:
        """Check the options before a model is downloaded."""
        options = self._options
        refuse_drawings(options.model, options.bench)
        check_margin(options.margin, options.criterion)
        check_questions(options, self._settings)
        refuse_foreign(self._out)

    def _quantize(self, job: Job, tasks: Sequence[Task], text: str | None) -> None:
        """Claim the output folder and write the checkpoint, unless it is finished."""
        options, reporter = self._options, self._reporter
        checkpoint_fingerprint = job.fingerprint()
        made_by = read_marker(self._checkpoint)
        if made_by is not None:
            # A finished checkpoint is kept whatever the number of threads is now.
            checkpoint_fingerprint[THREADS] = made_by.get(THREADS)
        # Every part of the evaluations' fingerprints must be part of this one or of the
        # checkpoint's: a difference that only they contain could not be resolved by --overwrite.
        evaluation_fingerprint: dict[str, Any] = {
            "tasks": {task.name: task_settings(task.fingerprint) for task in tasks},
            "questions": {task.name: task.fingerprint["items"] for task in tasks},
            "text": text and identify_text(text),
            "noise": self._noise,
            "batch_size": options.batch_size,
            "seed": self._seed,
            **({} if self._decoding.is_greedy else {"generation": self._decoding.describe()}),
            # Only if they are given, so that the others are as they were.
            **({} if options.kv_cache == "recipe" else {"kv_cache": options.kv_cache}),
        }
        fingerprint = {**checkpoint_fingerprint, **evaluation_fingerprint}
        stored = read_marker(self._out)
        if stored is not None and not refused_differences(stored, fingerprint):
            # Benchmarks that are not given this time keep their answers, and so their settings.
            fingerprint["tasks"] = {**stored["tasks"], **evaluation_fingerprint["tasks"]}
        flags: dict[str, Any] = {"overwrite": options.overwrite, "fresh": options.fresh}
        if claim(self._out, fingerprint, own=OWN_FILES, compare=refused_differences, **flags):
            reporter.note(f"resuming {self._out}")
        write_json(self._out / "plan.json", job.plan.to_dict())
        if made_by is not None and not differences(made_by, checkpoint_fingerprint):
            reporter.note(f"{self._checkpoint} is finished already")
            job.warn(reporter)
        else:
            self._announce(job, tasks)
            decoded_images.clear()  # memory for the quantization
            job.make(self._checkpoint, checkpoint_fingerprint, reporter, **flags)

    def _note_changes(self, tasks: Sequence[Task]) -> None:
        """Show what is asked in addition, and take benchmarks that are not given out of the run."""
        for change in describe_changes(self._base, tasks):
            self._reporter.note(change)
        names = [task.name for task in tasks]
        others = keep_only(self._base, names)
        keep_only(self._candidate, names)
        if others:
            self._reporter.note(
                f"{', '.join(others)}: not given this time and not in the report; the answers are "
                "kept"
            )

    def _announce(self, job: Job, tasks: Sequence[Task]) -> None:
        """Report what is going to be done, and let the reporter know how long its stages take."""
        if self._reporter.quiet or self._reporter.schedule is not None:
            return
        stages = run_stages(
            job,
            tasks,
            batch_size=self._options.batch_size,
            noise=self._noise,
            samples=self._options.samples,
        )
        self._reporter.schedule = Schedule(stages)
        action = f"quantizing {job.source.name} with {job.recipe.name}, evaluating both models"
        action += self._decoding.note
        seconds = sum(stage.seconds for stage in stages)
        self._reporter.note(describe(action, tasks, self._out, seconds))

    def _is_evaluated(self, job: Job, tasks: Sequence[Task], text: str | None) -> bool:
        """Whether both evaluations are complete, so that no model has to be loaded."""
        folders = (self._base, self._candidate)
        if not all((folder / "run.json").is_file() for folder in folders):
            return False
        base, candidate = map(read_run, folders)
        for evaluation in (base, candidate):
            if not is_finished(evaluation, tasks):
                return False
            if text is not None and not is_measured(text, job.processor, evaluation.path):
                return False
        floors = [read_noise([task]) for task in base.tasks.values()]
        has_noise = all(len(floor) == len(NOISE_KINDS) for floor in floors)
        return has_divergence(candidate) and (not self._noise or has_noise)

    def _evaluate_base(self, job: Job, tasks: Sequence[Task], text: str | None) -> None:
        """Evaluate the original, cache its log-probabilities and measure its noise floor."""
        model, batch_size = job.source.load(), self._options.batch_size
        features = FeatureCache(model, job.processor)  # shared with the noise floor
        with self._reporter.stages(ORIGINAL, again=LOGPROBS) as update:
            evaluate_model(
                model,
                job.processor,
                tasks,
                self._base,
                batch_size=batch_size,
                name=job.source.name,
                source=job.source.folder,
                seed=self._seed,
                decoding=self._decoding,
                is_reference=True,
                text=text,
                are_checked=True,
                features=features,
                on_progress=update,
            )
        if self._noise:
            sizes: dict[str, Any] = {"batch_size": batch_size, "units": self._noise}
            sizes["reporter"] = self._reporter
            measure_batch_floor(self._base, tasks, features, **sizes)
            dtype = model.dtype
            del model, features  # before the model is loaded in another dtype
            measure_dtype_floor(self._base, tasks, job.source, dtype=dtype, **sizes)

    def _evaluate_candidate(self, job: Job, tasks: Sequence[Task], text: str | None) -> None:
        """Evaluate the checkpoint in the same setup, and its divergence from the original.

        Only the largest area of an image may differ, if the recipe states one.
        """
        candidate = Source.find(self._checkpoint, self._candidate_settings)
        with self._reporter.stages(CHECKPOINT, again=DIVERGENCE) as update:
            evaluate_model(
                candidate.load(),
                candidate.processor(),
                tasks,
                self._candidate,
                batch_size=self._options.batch_size,
                reference=self._base,
                across_pixels=job.recipe.vision_input.max_pixels is not None,
                text=text,
                name=candidate.name,
                source=self._checkpoint,
                seed=self._seed,
                decoding=self._decoding,
                are_checked=True,
                on_progress=update,
            )
