"""Time an original and a quantized model in alternation, if both can be opened side by side."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch

from ..common.progress import Reporter, format_bytes
from ..model.qwen_vl import QwenVL
from ..quant.resolve import Source
from .answering.throughput import TimedModel, measure_throughput
from .fingerprint import activations_of, head_of, kernels_of
from .report.speed_section import read_throughput, write_throughput
from .results import StoredRun, read_run
from .tasks.task import Task

MARGIN = 1.25
"""Memory that two models need, as a multiple of their weights: activations and prepared layouts."""


def time_in_alternation(
    base: Path,
    candidate: Path,
    tasks: Sequence[Task],
    original: Source,
    quantized: Source,
    *,
    batch_size: int,
    reporter: Reporter,
) -> None:
    """Store with a candidate's evaluation how fast both models answer the same questions.

    What is stored already is kept. If the two models cannot be measured together the reason is
    stored in place of rates.

    Args:
        base: folder of the original's finished evaluation.
        candidate: folder of the candidate's.
        tasks: what both were asked.
        original: the model behind `base`.
        quantized: the model behind `candidate`.
        batch_size: of the evaluations.
        reporter: shows progress.
    """
    runs = read_run(base), read_run(candidate)
    if read_throughput(*runs):
        return
    reason = _lack_of_memory(*runs, device=original.device)
    models: list[QwenVL] = []
    if not reason:
        sources = zip((original, quantized), runs, strict=True)
        models = [_like(source, run).load() for source, run in sources]
        reason = _other_runtime(models, runs)
    if reason:
        reporter.note(f"speed is not measured in alternation: {reason}")
        write_throughput(base, candidate, reason=f"not measured in alternation: {reason}")
        return
    with reporter.stage("speed in alternation") as update:
        rates = measure_throughput(
            TimedModel(models[0], original.processor()),
            TimedModel(models[1], quantized.processor()),
            tasks,
            batch_size=batch_size,
            seed=original.settings.seed or 0,
            on_progress=update,
        )
    write_throughput(base, candidate, rates=rates)


def _like(source: Source, run: StoredRun) -> Source:
    """The source with the cache type that a run was evaluated with."""
    cache = run.fingerprint.get("kv_cache", "model")
    return replace(source, settings=replace(source.settings, kv_cache=cache))


def _lack_of_memory(base: StoredRun, candidate: StoredRun, *, device: torch.device) -> str:
    """Why two models do not fit into the device's free memory together; empty if they do."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    width = getattr(torch, str(base.fingerprint["dtype"])).itemsize
    needed = MARGIN * (base.info["model"]["weights"] * width + candidate.info["model"]["bytes"])
    if needed <= free:
        return ""
    return f"both models need {format_bytes(needed)} and {format_bytes(free)} are free"


def _other_runtime(models: Sequence[QwenVL], runs: Sequence[StoredRun]) -> str:
    """Why models do not compute as those of the evaluations did; empty if they do."""
    for model, run in zip(models, runs, strict=True):
        now: dict[str, Any] = {
            "dtype": str(model.dtype).removeprefix("torch."),
            "kernels": kernels_of(model),
            "activations": activations_of(model),
            "head": head_of(model),
            "kv_cache": model.cache_type,
        }
        for key, value in now.items():
            before = run.fingerprint.get(key)
            if before != value:
                return f"{run.name} was evaluated with {key} {before}, and would now run {value}"
    return ""
