"""Measurement of the noise floor: the base against itself with another batch size or dtype.

A sample of whole questions is answered again with the changed setup, and the stored answers are
read again for their divergence. `noise` reads the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from ...common.progress import Reporter
from ...quant.resolve import Source
from ..answering.batches import OnProgress
from ..answering.runner import ModelResponder, answer_task
from ..answering.sampling import first_sample
from ..answering.vision_features import FeatureCache
from ..fingerprint import answer_setup
from ..planning.stages import noise_titles
from ..results import read_run
from ..tasks.task import Task, by_unit, is_broken, sample_units
from .logprob_cache import LogProbReader
from .measure import FOLDER, measure_task
from .noise import BATCH, DTYPE, NOISE, UNITS, noise_folder, write_sample

SINGLE = 1
PAIRS = 2
"""Batch size of the measurement if the evaluation has a batch size of 1."""


def measure_batch_floor(
    run_dir: Path,
    tasks: Sequence[Task],
    features: FeatureCache,
    *,
    batch_size: int,
    units: int,
    reporter: Reporter,
) -> None:
    """Measure the noise of the batch size: questions one by one, or in pairs.

    Args:
        run_dir: the base's finished evaluation, with its log-probabilities.
        tasks: the same benchmarks.
        features: the base with the image features of its evaluation.
        batch_size: batch size of the evaluation.
        units: questions of each benchmark.
        reporter: shows progress.

    Raises:
        FileNotFoundError: the base's log-probabilities are not stored.
        ValueError: the stored measurement has another setup.
    """
    other = other_batch_size(batch_size)
    sizes = {"batch_size": other, "units": units}
    _report_floor(run_dir, tasks, features, BATCH, f"batch size {other}", sizes, reporter)


def measure_dtype_floor(
    run_dir: Path,
    tasks: Sequence[Task],
    source: Source,
    *,
    dtype: torch.dtype,
    batch_size: int,
    units: int,
    reporter: Reporter,
) -> None:
    """Measure the noise of the dtype: float32, or bfloat16 if the evaluation used float32.

    Args:
        run_dir: the base's finished evaluation, with its log-probabilities.
        tasks: the same benchmarks.
        source: the base; loaded here, so that the caller can release the other copy before.
        dtype: dtype of the evaluation.
        batch_size: batch size of the evaluation.
        units: questions of each benchmark.
        reporter: shows progress.

    Raises:
        FileNotFoundError: the base's log-probabilities are not stored.
        ValueError: the stored measurement has another setup.
    """
    other = other_dtype(dtype)
    again = replace(source, settings=replace(source.settings, dtype=other))
    features = FeatureCache(again.load(), again.processor())
    sizes = {"batch_size": batch_size, "units": units}
    _report_floor(run_dir, tasks, features, DTYPE, str(other), sizes, reporter)


def other_batch_size(batch_size: int) -> int:
    """Return the batch size of the measurement for that of an evaluation."""
    return SINGLE if batch_size > SINGLE else PAIRS


def other_dtype(dtype: torch.dtype) -> Literal["bf16", "fp32"]:
    """Return the dtype of the measurement for that of an evaluation."""
    return "bf16" if dtype == torch.float32 else "fp32"


def _report_floor(
    run_dir: Path,
    tasks: Sequence[Task],
    features: FeatureCache,
    kind: str,
    change: str,
    sizes: dict[str, Any],
    reporter: Reporter,
) -> None:
    title, again = noise_titles(change)
    with reporter.stages(title, again=again) as update:
        measure_noise(run_dir, tasks, features, kind, **sizes, on_progress=update)


def measure_noise(
    run_dir: str | Path,
    tasks: Sequence[Task],
    features: FeatureCache,
    kind: str,
    *,
    batch_size: int,
    units: int = UNITS,
    on_progress: OnProgress | None = None,
) -> None:
    """Measure the base against its stored answers and log-probabilities; resumes.

    Args:
        run_dir: the base's finished evaluation, with its log-probabilities.
        tasks: the same benchmarks.
        features: the base, or the base in another dtype, with its image features.
        kind: the changed part of the setup, `BATCH` or `DTYPE`.
        batch_size: prompts per batch of this measurement.
        units: questions of each benchmark.
        on_progress: called after every batch.

    Raises:
        FileNotFoundError: the base's log-probabilities are not stored.
        ValueError: the stored measurement has another setup.
    """
    base = read_run(run_dir)
    for task in tasks:
        stored = base.tasks[task.name]
        sample = noise_sample(task, units)
        folder = noise_folder(stored, kind)
        folder.mkdir(parents=True, exist_ok=True)
        write_sample(folder, task, sample)
        changed = {
            "kind": kind,
            "batch_size": batch_size,
            "dtype": str(features.model.dtype).removeprefix("torch."),
        }
        setup = {**answer_setup(base.fingerprint, task), NOISE: changed}
        batching: dict[str, Any] = {"batch_size": batch_size, "on_progress": on_progress}
        reader = LogProbReader(stored.folder / FOLDER, task.digests)
        decoding = first_sample(base.fingerprint)
        answer_task(
            decoding.repeat(sample),
            ModelResponder(features, decoding),
            folder / "predictions.jsonl",
            setup,
            threads=torch.get_num_threads(),
            **batching,
        )
        measure_task(
            sample,
            features,
            stored.first,
            reader,
            folder / "fidelity.jsonl",
            {**setup, "kl_kind": reader.kind},
            **batching,
        )


def noise_sample(task: Task, units: int = UNITS) -> Task:
    """Sample whole questions of a task, spread over the categories; always the same ones."""
    sound = {u: rows for u, rows in by_unit(task.fields).items() if not any(map(is_broken, rows))}
    categories = {unit: rows[0]["category"] for unit, rows in sound.items()}
    chosen = sample_units(categories, units, seed=0)
    return replace(
        task,
        items=tuple(item for item in task.items if item.fields["unit"] in chosen),
        fields=tuple(fields for fields in task.fields if fields["unit"] in chosen),
        rounds={},
    )
