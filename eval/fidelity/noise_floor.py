"""The noise floor of an original: how far it is from itself in another batch size or dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ...common.progress import Reporter
from ...model.processing.processor import Processor
from ...model.qwen_vl import QwenVL
from ...quant.resolve import Source
from ..tasks.task import Task
from .noise import BATCH, DTYPE, measure_noise

ALONE = 1
PAIRS = 2  # where the evaluation itself asks one question at a time


def measure_batch_floor(
    folder: Path,
    tasks: Sequence[Task],
    model: QwenVL,
    processor: Processor,
    *,
    batch_size: int,
    units: int,
    reporter: Reporter,
) -> None:
    """Ask a part of the questions again, one at a time.

    Args:
        folder: the original's evaluation.
        tasks: the same benchmarks.
        model: the original.
        processor: of the original.
        batch_size: of the evaluation.
        units: questions of each benchmark.
        reporter: shows progress.
    """
    other = ALONE if batch_size > ALONE else PAIRS
    title = f"noise, batches of {other}:"
    with reporter.stages(title, again=f"{title} reading") as update:
        measure_noise(
            folder,
            tasks,
            model,
            processor,
            BATCH,
            batch_size=other,
            units=units,
            on_progress=update,
        )


def measure_dtype_floor(
    folder: Path,
    tasks: Sequence[Task],
    source: Source,
    *,
    dtype: torch.dtype,
    batch_size: int,
    units: int,
    reporter: Reporter,
) -> None:
    """Ask a part of the questions again, in float32, or in bfloat16 if that is what was used.

    Args:
        folder: the original's evaluation.
        tasks: the same benchmarks.
        source: the original; is loaded here, so that the first one can be let go before.
        dtype: of the evaluation.
        batch_size: of the evaluation.
        units: questions of each benchmark.
        reporter: shows progress.
    """
    other = "bf16" if dtype == torch.float32 else "fp32"
    again = replace(source, settings=replace(source.settings, dtype=other))
    title = f"noise, {other}:"
    with reporter.stages(title, again=f"{title} reading") as update:
        measure_noise(
            folder,
            tasks,
            again.load(),
            again.processor(),
            DTYPE,
            batch_size=batch_size,
            units=units,
            on_progress=update,
        )
