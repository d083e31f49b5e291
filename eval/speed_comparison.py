"""Timing of an original and a quantized model in alternation, if both fit into memory."""

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
from ..quant.runtime.description import count_kernels, describe_activations, describe_head
from .answering.throughput import TimedModel, measure_throughput
from .report.speed_section import read_throughput, write_throughput
from .results import StoredRun, read_run
from .tasks.task import Task

MEMORY_FACTOR = 1.25
"""Memory of two models as a multiple of their weights: activations and prepacked layouts."""


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
    """Measure the speed of both models on the same questions; store it with the candidate.

    Stored rates are kept. If the models cannot be measured together, the reason is stored instead.

    Args:
        base: folder of the original's finished evaluation.
        candidate: folder of the candidate's finished evaluation.
        tasks: of both evaluations.
        original: the model of `base`.
        quantized: the model of `candidate`.
        batch_size: of the evaluations.
        reporter: shows progress.
    """
    runs = read_run(base), read_run(candidate)
    if read_throughput(*runs):
        return
    reason = _memory_shortage(*runs, device=original.device)
    models: list[QwenVL] = []
    if not reason:
        sources = zip((original, quantized), runs, strict=True)
        models = [_with_cache_of(run, source).load() for source, run in sources]
        reason = _runtime_difference(models, runs)
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


def _with_cache_of(run: StoredRun, source: Source) -> Source:
    """Return the source with the KV cache dtype of an evaluation."""
    cache = run.fingerprint.get("kv_cache", "model")
    return replace(source, settings=replace(source.settings, kv_cache=cache))


def _memory_shortage(base: StoredRun, candidate: StoredRun, *, device: torch.device) -> str:
    """Explain that two models do not fit into the device's free memory; empty if they do."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = psutil.virtual_memory().available
    width = getattr(torch, str(base.fingerprint["dtype"])).itemsize
    needed = MEMORY_FACTOR * (
        base.info["model"]["weights"] * width + candidate.info["model"]["bytes"]
    )
    if needed <= free:
        return ""
    return f"both models need {format_bytes(needed)} and {format_bytes(free)} are free"


def _runtime_difference(models: Sequence[QwenVL], runs: Sequence[StoredRun]) -> str:
    """Explain the difference between the models' runtime and the evaluations'; empty if none."""
    for model, run in zip(models, runs, strict=True):
        current: dict[str, Any] = {
            "dtype": str(model.dtype).removeprefix("torch."),
            "kernels": count_kernels(model),
            "activations": describe_activations(model),
            "head": describe_head(model),
            "kv_cache": model.cache_type,
        }
        for key, value in current.items():
            before = run.fingerprint.get(key)
            if before != value:
                return f"{run.name} was evaluated with {key} {before}, and would now run {value}"
    return ""
