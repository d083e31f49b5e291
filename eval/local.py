"""Evaluation of a checkpoint in this process, or in several that share the batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..common.differences import differences
from ..common.distributed import Communicator, broadcast_result, rank_zero_first
from ..common.output_dir import discard, refuse_foreign
from ..common.progress import Reporter
from ..common.schedule import Schedule
from ..model.processing.processor import Processor
from ..quant.resolve import Source
from ..quant.runtime.description import described_rule
from .answering.sampling import Decoding
from .answering.vision_features import FeatureCache
from .config import EvaluateOptions
from .evaluation import evaluate_model
from .extension import describe_changes
from .fidelity.noise_floor import measure_batch_floor, measure_dtype_floor
from .fidelity.perplexity import FILE as TEXT_FILE
from .fidelity.reference import find_reference
from .fingerprint import (
    VISUAL_TOKENS,
    largest_area,
    run_fingerprint,
    task_settings,
    uses_adapter,
    without_threads,
)
from .planning.checks import check_questions
from .planning.schedule import model_stages
from .planning.stages import FROM_REFERENCE, LOGPROBS, MODEL, describe
from .report.sections.speed import FILE as THROUGHPUT_FILE
from .report.sections.speed import write_throughput
from .resolve import open_tasks, open_text
from .results import QUANTIZATION, read_info, read_run, tasks_of_another_schema
from .speed_comparison import time_in_alternation
from .tasks.task import Task

RUN_FILE = "run.json"
SCORES_FILE = "scores.json"


def evaluate_local(
    out: Path, options: EvaluateOptions, reporter: Reporter, comm: Communicator
) -> dict[str, Any]:
    """Evaluate a model into a folder, resuming an interrupted evaluation; return its scores.

    Args:
        out: folder of the evaluation, locked by the caller.
        options: model, benchmarks and settings.
        reporter: shows progress.
        comm: processes that share the batches; rank 0 writes.

    Raises:
        FileNotFoundError: the model, a benchmark file or the reference does not exist.
        ValueError: an option does not fit, or `out` holds other work.
    """
    if options.noise and comm.world_size > 1:
        raise ValueError("--noise is measured by one process; leave it out under torchrun")
    reference = None if options.reference is None else Path(options.reference)
    seed, batch_size = options.seed or 0, options.batch_size
    decoding = Decoding.of(options, seed)

    def open_all() -> tuple[Source, Processor, list[Task], str | None]:
        check_questions(options, options)
        refuse_foreign(out, RUN_FILE)
        with reporter.step(f"reading {options.model} and the benchmarks"):
            source = Source.find(str(options.model), options)
            processor = source.processor()
            return source, processor, open_tasks(options, source, processor), open_text(options)

    source, processor, tasks, text = rank_zero_first(comm, open_all)
    _announce(out, options, source, processor, tasks, reporter)
    with reporter.step(f"loading {source.name}"):
        model = source.load()
    features = FeatureCache(model, processor)  # shared with the noise floor

    def setup() -> dict[str, Any]:
        return run_fingerprint(
            model,
            processor,
            batch_size=batch_size,
            seed=seed,
            source=source.folder,
            decoding=decoding,
        )

    flags = {"overwrite": options.overwrite, "fresh": options.fresh}
    broadcast_result(comm, lambda: discard_stale(out, setup, tasks, **flags))
    for change in rank_zero_first(comm, lambda: describe_changes(out, tasks)):
        reporter.note(change)
    again = LOGPROBS if reference is None else FROM_REFERENCE
    with reporter.stages(MODEL, again=again) as update:
        result = evaluate_model(
            model,
            processor,
            tasks,
            out,
            batch_size=batch_size,
            reference=reference,
            across_pixels=options.across_pixels,
            is_reference=bool(options.noise),
            text=text,
            name=source.name,
            source=source.folder,
            seed=seed,
            decoding=decoding,
            are_checked=True,
            features=features,
            on_progress=update,
            comm=comm,
        )
    if options.noise:
        sizes = {"batch_size": batch_size, "units": options.noise}
        measure_batch_floor(out, tasks, features, **sizes, reporter=reporter)
        dtype = model.dtype
        del model, features  # before the model is loaded in another dtype
        measure_dtype_floor(out, tasks, source, dtype=dtype, **sizes, reporter=reporter)
    elif reference is not None and comm.world_size == 1:
        del model, features  # before both models are loaded
        _time_against(reference, out, tasks, source, batch_size, reporter)
    return result.to_dict()


def _announce(
    out: Path,
    options: EvaluateOptions,
    source: Source,
    processor: Processor,
    tasks: Sequence[Task],
    reporter: Reporter,
) -> None:
    """Report what is going to be done, and let the reporter know how long its stages take."""
    if reporter.quiet:
        return
    stages = model_stages(
        source,
        tasks,
        processor,
        batch_size=options.batch_size,
        noise=options.noise or 0,
        samples=options.samples,
        has_reference=options.reference is not None,
    )
    reporter.schedule = Schedule(stages)
    is_new = not (out / RUN_FILE).is_file()
    seconds = sum(stage.seconds for stage in stages) if is_new else None
    decoding = Decoding.of(options, options.seed or 0)
    stored = None if options.out is None and options.no_cache else out
    reporter.note(describe(f"evaluating {source.name}{decoding.note}", tasks, stored, seconds))


def _time_against(
    reference: Path,
    out: Path,
    tasks: Sequence[Task],
    source: Source,
    batch_size: int,
    reporter: Reporter,
) -> None:
    """Time the model in alternation with the original that a reference was evaluated with."""
    base = read_run(reference)
    try:
        folder = find_reference(base)
    except ValueError as error:
        reporter.note(f"speed is not measured in alternation: {error}")
        write_throughput(reference, out, reason=f"not measured in alternation: {error}")
        return
    settings = replace(
        source.settings,
        activations="recipe",
        head="recipe",
        reduce=described_rule(base.fingerprint.get(VISUAL_TOKENS)),
        no_adapter=not uses_adapter(base.fingerprint),
        max_pixels=largest_area(base.fingerprint),
    )
    original = Source.find(str(folder), settings)
    time_in_alternation(
        reference, out, tasks, original, source, batch_size=batch_size, reporter=reporter
    )


def discard_stale(
    out: Path,
    setup: Callable[[], Mapping[str, Any]],
    tasks: Sequence[Task],
    *,
    overwrite: bool,
    fresh: bool,
) -> None:
    """Discard a stored evaluation that may not be resumed.

    That is any with `fresh`, one of another setup or schema with `overwrite`, and one of another
    setup that holds no answer yet.

    Args:
        out: folder of the evaluation.
        setup: computes the fingerprint; called only if needed, as it may hash a checkpoint.
        tasks: of this evaluation.
        overwrite: see above.
        fresh: see above.
    """
    if not (out / RUN_FILE).is_file():
        return
    if (fresh or overwrite) and (names := tasks_of_another_schema(out)) is not None:
        discard(out, [*names, QUANTIZATION, TEXT_FILE, THROUGHPUT_FILE, SCORES_FILE, RUN_FILE])
        return
    stored = read_info(out)
    settings = {
        name: task_settings(entry["fingerprint"]) for name, entry in stored["tasks"].items()
    }
    if not (fresh or overwrite) and _has_answers(out, settings):
        return
    current = {task.name: task_settings(task.fingerprint) for task in tasks}
    is_stale = not fresh and (
        any(differences(settings.get(name, values), values) for name, values in current.items())
        or bool(differences(without_threads(stored["fingerprint"]), without_threads(setup())))
    )
    if fresh or is_stale:
        # The file that marks the folder as an evaluation goes last, in case of a kill.
        discard(out, [*settings, QUANTIZATION, TEXT_FILE, THROUGHPUT_FILE, SCORES_FILE, RUN_FILE])


def _has_answers(out: Path, names: Iterable[str]) -> bool:
    files = [out / name / "predictions.jsonl" for name in names]
    return any(path.is_file() and path.read_bytes().count(b"\n") > 1 for path in files)
