"""Schedules of `run` and `eval`: their stages with durations estimated for this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...common.schedule import Expected
from ...model.processing.processor import Processor
from ...quant.job import QUANTIZING, Job
from ...quant.plan.time_estimate import cached_probe
from ...quant.resolve import Source
from ..answering.throughput import choose_batches
from ..fidelity.noise_floor import other_batch_size, other_dtype
from ..tasks.task import Task
from . import stages
from .workload import Passes, estimate_passes, measure_workload


def run_stages(
    job: Job, tasks: Sequence[Task], *, batch_size: int, noise: int, samples: int
) -> list[Expected]:
    """Return the stages of a run: quantization, both evaluations, the noise floor.

    Args:
        job: the quantization.
        tasks: the benchmarks.
        batch_size: of the evaluations.
        noise: questions of each benchmark that the noise floor is measured with; 0: not measured.
        samples: answers per question.
    """
    rates, _ = cached_probe(job.source.device, job.source.dtype)
    return [
        Expected(QUANTIZING, job.estimate_seconds(rates), QUANTIZING),
        *comparison_stages(
            job.source,
            tasks,
            job.processor,
            batch_size=batch_size,
            noise=noise,
            samples=samples,
        ),
    ]


def comparison_stages(
    source: Source,
    tasks: Sequence[Task],
    processor: Processor,
    *,
    batch_size: int,
    noise: int,
    samples: int,
) -> list[Expected]:
    """Return the stages of a run after the quantization.

    Args:
        source: the original.
        tasks: the benchmarks.
        processor: of the original.
        batch_size: as for `run_stages`.
        noise: as for `run_stages`.
        samples: answers per question.
    """
    passes = _estimate(source, tasks, processor, batch_size)
    return [
        *stages.evaluation_stages(passes, stages.ORIGINAL, stages.LOGPROBS, samples),
        *_noise(source, tasks, passes, batch_size, noise),
        *stages.evaluation_stages(passes, stages.CHECKPOINT, stages.DIVERGENCE, samples),
        Expected(stages.TIMING, _timing(tasks, passes, batch_size), stages.EVALUATION),
    ]


def budget_stages(
    source: Source,
    tasks: Sequence[Task],
    processors: Mapping[int, Processor],
    *,
    batch_size: int,
    samples: int,
) -> list[Expected]:
    """Return the stages of the evaluation of one model at several visual-token budgets.

    Args:
        source: the model.
        tasks: the benchmarks.
        processors: by budget; 0: with the checkpoint's own setting.
        batch_size: of the evaluations.
        samples: answers per question.
    """
    expected, timing = [], 0.0
    for budget, processor in processors.items():
        passes = _estimate(source, tasks, processor, batch_size)
        titles = stages.budget_titles(budget) if budget else (stages.ORIGINAL, stages.LOGPROBS)
        expected += stages.evaluation_stages(passes, *titles, samples)
        timing += _timing(tasks, passes, batch_size) / 2
    return [*expected, Expected(stages.TIMING_BUDGETS, timing, stages.EVALUATION)]


def model_stages(
    source: Source,
    tasks: Sequence[Task],
    processor: Processor,
    *,
    batch_size: int,
    noise: int,
    samples: int,
    has_reference: bool,
) -> list[Expected]:
    """Return the stages of the evaluation of one model.

    Args:
        source: the model.
        tasks: the benchmarks.
        processor: of the model.
        batch_size: of the evaluation.
        noise: as for `run_stages`.
        samples: answers per question.
        has_reference: whether the divergence from another evaluation is measured.
    """
    passes = _estimate(source, tasks, processor, batch_size)
    reading = stages.FROM_REFERENCE if has_reference else stages.LOGPROBS if noise else None
    return [
        *stages.evaluation_stages(passes, stages.MODEL, reading, samples),
        *_noise(source, tasks, passes, batch_size, noise),
    ]


def _estimate(
    source: Source, tasks: Sequence[Task], processor: Processor, batch_size: int
) -> dict[str, Passes]:
    rates, _ = cached_probe(source.device, source.dtype)
    works = (measure_workload(task, processor) for task in tasks)
    return {
        work.name: estimate_passes(work, source.config, rates, batch_size=batch_size)
        for work in works
    }


def _timing(tasks: Sequence[Task], passes: dict[str, Passes], batch_size: int) -> float:
    """Estimate the time of answering the same questions with both models in alternation."""
    prompts = sum(len(task.items) for task in tasks)
    if not prompts:
        return 0.0
    timed = sum(map(len, choose_batches(tasks, batch_size)))
    return 2 * timed / prompts * sum(each.answering for each in passes.values())


def _noise(
    source: Source,
    tasks: Sequence[Task],
    passes: dict[str, Passes],
    batch_size: int,
    units: int,
) -> list[Expected]:
    if not units:
        return []
    changes = (f"batch size {other_batch_size(batch_size)}", str(other_dtype(source.dtype)))
    return [
        stage for change in changes for stage in stages.noise_stages(tasks, passes, units, change)
    ]
