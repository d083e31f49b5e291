"""The verb `pixels` of the Python API: the paired evaluation of a model at visual-token budgets.

The output folder holds `eval/base/` (the checkpoint's own setting), `eval/BUDGET/`, a report per
budget in `report/BUDGET/`, and over all budgets `pixels.json`, `pixels.md` and `pixels.html`. All
answers are stored as they arrive: further budgets, questions and benchmarks ask only what is new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...common.atomic import write_json, write_text
from ...common.environment import device_name, versions
from ...common.json_files import read_json
from ...common.options import verb
from ...common.output_dir import (
    REMEDY,
    claim,
    read_marker,
    refuse_foreign,
    sole_use,
)
from ...common.progress import Reporter, reporting
from ...common.schedule import Schedule
from ...common.threads import use_threads
from ...model.token_reduction.table import RECIPE
from ...quant.config import InputOptions, ModelSettings
from .. import compare
from ..answering.sampling import Decoding
from ..answering.throughput import TimedModel, time_alternating
from ..config import BenchmarkOptions
from ..evaluation import evaluate_model, refresh
from ..extension import (
    describe_changes,
    has_divergence,
    is_finished,
    keep_only,
    refused_differences,
)
from ..fingerprint import MODEL_KEYS, THREADS, identify_checkpoint, task_settings
from ..planning.checks import check_questions, refuse_drawings
from ..planning.schedule import budget_stages
from ..planning.stages import LOGPROBS, ORIGINAL, TIMING_BUDGETS, budget_titles, describe
from ..report.budgets import render_budgets
from ..report.report import check_margin
from ..report.sections.speed import write_throughput
from ..results import read_run
from ..tasks.task import Task
from .config import PixelsOptions
from .opened import Opened, open_budgets
from .summary import Measured, summarize
from .writing import check_target, write_candidate

BASE = "base"
TIMING_FILE = "timing.json"
OWN_FILES = ("eval", "report", TIMING_FILE, "pixels.json", "pixels.md", "pixels.html")


@verb(PixelsOptions)
def pixels(options: PixelsOptions) -> dict[str, Any]:
    """Evaluate a model at several visual-token budgets, paired with the checkpoint's own setting.

    A budget is the largest number of visual tokens of an image, after the merger: the largest area
    of the preprocessor divided by the pixels of a token. Questions and all other settings are the
    same at every budget. An interrupted call resumes when it is repeated.

    Returns:
        The content of `pixels.json`.

    Raises:
        FileNotFoundError: the model or a benchmark file does not exist.
        ValueError: an option does not fit, the model does not allow a budget, no budget changes an
            image, or `out` holds other work or is in use.
    """
    use_threads(options.threads)
    with sole_use(Path(options.out)), reporting(options.progress) as reporter:
        return _Pixels(options, reporter).result()


class _Pixels:
    """One call of `pixels`."""

    def __init__(self, options: PixelsOptions, reporter: Reporter) -> None:
        self._options = options
        self._reporter = reporter
        self._settings = options.group(ModelSettings)
        self._decoding = Decoding.of(options, self._settings.seed or 0)
        self._out = Path(options.out)
        self._target = None if options.write is None else Path(options.write)
        self._flags: dict[str, Any] = {"overwrite": options.overwrite, "fresh": options.fresh}

    def result(self) -> dict[str, Any]:
        """Complete the evaluations and return their summary."""
        options = self._options
        refuse_drawings(options.model, options.bench)
        check_margin(options.margin)
        check_questions(options.group(BenchmarkOptions), options.group(InputOptions))
        refuse_foreign(self._out)
        opened = open_budgets(options, self._settings, self._reporter)
        if self._target is not None:
            check_target(self._target, opened.source.folder, self._out)
        self._claim(opened)
        self._evaluate(opened)
        timing = self._time(opened)
        reports = {budget: self._report(budget) for budget in opened.processors}
        measured = Measured(opened.tokens, reports, timing, opened.without_effect)
        vision = opened.source.config.vision
        areas = {b: each.max_pixels for b, each in ((0, opened.own), *opened.processors.items())}
        result = summarize(opened.source.name, measured, areas, vision.pixel_factor**2)
        result |= {"command": options.command(), "written": self._write(opened, result)}
        self._store(result)
        return result

    def _claim(self, opened: Opened) -> None:
        """Claim the output folder, and say what a call adds to stored work."""
        settings, source = self._settings, opened.source
        fingerprint: dict[str, Any] = {
            "verb": "pixels",
            "model": identify_checkpoint(source.folder),
            "pixels": [opened.own.min_pixels, opened.own.max_pixels],
            "device": device_name(source.device),
            "dtype": str(source.dtype).removeprefix("torch."),
            **{key: getattr(settings, key) for key in ("activations", "head", "kv_cache")},
            **({} if settings.reduce == RECIPE else {"reduce": settings.reduce}),
            **({"no_adapter": True} if settings.no_adapter else {}),
            "tasks": {task.name: task_settings(task.fingerprint) for task in opened.tasks},
            "questions": {task.name: task.fingerprint["items"] for task in opened.tasks},
            "text": None,
            "batch_size": self._options.batch_size,
            "seed": settings.seed or 0,
            **({} if self._decoding.is_greedy else {"generation": self._decoding.describe()}),
            "versions": versions(),
        }
        stored = read_marker(self._out)
        if stored is not None and not refused_differences(stored, fingerprint):
            # Benchmarks that are not given this time keep their answers, and so their settings.
            fingerprint["tasks"] = {**stored["tasks"], **fingerprint["tasks"]}
        resumed = claim(
            self._out, fingerprint, own=OWN_FILES, compare=refused_differences, **self._flags
        )
        if resumed:
            self._reporter.note(f"resuming {self._out}")
        for change in describe_changes(self._folder(BASE), opened.tasks):
            self._reporter.note(change)
        names = [task.name for task in opened.tasks]
        folders = sorted((self._out / "eval").glob("*"))
        left_out = {name for folder in folders for name in keep_only(folder, names)}
        budgets = {folder.name for folder in folders} - {BASE, *map(str, opened.processors)}
        left_out |= {f"budget {name}" for name in budgets}
        if left_out:
            self._reporter.note(
                f"{', '.join(sorted(left_out))}: not given this time and not in the result; the "
                "answers are kept"
            )

    def _folder(self, name: object) -> Path:
        return self._out / "eval" / str(name)

    def _evaluate(self, opened: Opened) -> None:
        """Evaluate the model with its own setting, then at every budget."""
        if all(self._is_evaluated(budget, opened.tasks) for budget in (0, *opened.processors)):
            for budget in (BASE, *opened.processors):
                refresh(self._folder(budget), opened.tasks)
            return
        self._announce(opened)
        shared: dict[str, Any] = {
            "batch_size": self._options.batch_size,
            "name": opened.source.name,
            "source": opened.source.folder,
            "seed": self._settings.seed or 0,
            "decoding": self._decoding,
            "are_checked": True,
        }
        with self._reporter.stages(ORIGINAL, again=LOGPROBS) as update:
            evaluate_model(
                opened.model,
                opened.own,
                opened.tasks,
                self._folder(BASE),
                is_reference=True,
                on_progress=update,
                **shared,
            )
        for budget, processor in opened.processors.items():
            title, again = budget_titles(budget)
            with self._reporter.stages(title, again=again) as update:
                evaluate_model(
                    opened.model,
                    processor,
                    opened.tasks,
                    self._folder(budget),
                    reference=self._folder(BASE),
                    across_pixels=True,
                    on_progress=update,
                    **shared,
                )

    def _is_evaluated(self, budget: int, tasks: Sequence[Task]) -> bool:
        """Whether an evaluation is complete, with its divergence from the base at a budget."""
        folder = self._folder(budget or BASE)
        if not (folder / "run.json").is_file():
            return False
        run = read_run(folder)
        return is_finished(run, tasks) and (not budget or has_divergence(run))

    def _announce(self, opened: Opened) -> None:
        """Report what is going to be done, and let the reporter know how long its stages take."""
        if self._reporter.quiet:
            return
        stages = budget_stages(
            opened.source,
            opened.tasks,
            {0: opened.own, **opened.processors},
            batch_size=self._options.batch_size,
            samples=self._options.samples,
        )
        self._reporter.schedule = Schedule(stages)
        action = f"evaluating {opened.source.name} as it is and with at most "
        action += f"{', '.join(map(str, opened.processors))} visual tokens per image"
        seconds = sum(stage.seconds for stage in stages)
        self._reporter.note(describe(action, opened.tasks, self._out, seconds))

    def _time(self, opened: Opened) -> dict[str, Any]:
        """Time all budgets in alternation, unless stored times are of the same models."""
        base, path = read_run(self._folder(BASE)), self._out / TIMING_FILE
        keys = (*MODEL_KEYS, "device", "dtype", THREADS)
        of: dict[str, Any] = {
            "budgets": list(opened.processors),
            "setup": {key: base.fingerprint.get(key) for key in keys},
            "questions": {task.name: task.fingerprint["items"] for task in opened.tasks},
        }
        if path.is_file() and (stored := read_json(path, REMEDY)).get("of") == of:
            return dict(stored)
        models = {
            str(name): TimedModel(opened.model, processor)
            for name, processor in ((BASE, opened.own), *opened.processors.items())
        }
        with self._reporter.stage(TIMING_BUDGETS) as update:
            measured = time_alternating(
                models,
                opened.tasks,
                batch_size=self._options.batch_size,
                seed=self._settings.seed or 0,
                on_progress=update,
            )
        for budget in opened.processors:
            rates = measured.throughput(BASE, str(budget))
            write_throughput(self._folder(BASE), self._folder(budget), rates=rates)
        latencies = {str(b): measured.latency(BASE, str(b)) for b in opened.processors}
        timing = {"of": of, **measured.sizes, "latencies": latencies}
        write_json(path, timing)
        return timing

    def _report(self, budget: int) -> dict[str, Any]:
        return compare(
            self._folder(BASE),
            self._folder(budget),
            self._out / "report" / str(budget),
            margin=self._options.margin,
            across_pixels=True,
            about={"command": self._options.command()},
            overview="../../pixels.html",
        )

    def _write(self, opened: Opened, result: Mapping[str, Any]) -> str | None:
        """Write the checkpoint with the chosen budget; return its folder, None without one."""
        budget = result["smallest"]["all"]
        if self._target is None:
            return None
        if budget is None:
            self._reporter.warn(
                f"{self._target} is not written: no budget passes together with all larger ones "
                "on all benchmarks"
            )
            return None
        area = opened.processors[budget].max_pixels
        write_candidate(opened.source.folder, self._target, area, self._reporter, **self._flags)
        return str(self._target)

    def _store(self, result: Mapping[str, Any]) -> None:
        from ..report.html.budget_page import budget_page  # imports matplotlib

        write_text(self._out / "pixels.md", render_budgets(result))
        write_text(self._out / "pixels.html", budget_page(result))
        write_json(self._out / "pixels.json", result)
