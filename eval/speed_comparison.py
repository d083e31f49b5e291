"""Speed and memory of an original and a quantized model in alternation, if both fit into memory."""

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
from ..quant.runtime.description import (
    count_kernels,
    describe_activations,
    describe_cache,
    describe_head,
    describe_reduction,
    described_rule,
    described_type,
)
from .answering.memory import SIDES, find_meter, measure_memory
from .answering.throughput import LEAST, TimedModel, choose_batches, measure_throughput
from .fingerprint import VISUAL_TOKENS, uses_adapter
from .planning.stages import TIMING
from .report.sections.speed import read_throughput, write_throughput
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
    """Measure speed and memory of both models on the same questions; store them with the candidate.

    Stored results are kept. If the models cannot be measured together, the reason is stored.

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
    seed = original.settings.seed or 0
    timed: list[TimedModel] = []
    resident: dict[str, int] = {}
    meter = None if reason else find_meter(original.device)
    if not reason:
        batches = choose_batches(tasks, batch_size, seed)
        for side, source, run in zip(SIDES, (original, quantized), runs, strict=True):
            before = meter.used() if meter else 0
            model = TimedModel(_with_runtime_of(run, source).load(), source.processor())
            model.answer(batches[0][:LEAST])  # the first use prepacks weights
            timed.append(model)
            resident[side] = max(meter.used() - before, 0) if meter else 0
        reason = _runtime_difference([model.model for model in timed], runs)
    if reason:
        reporter.note(f"speed is not measured in alternation: {reason}")
        write_throughput(base, candidate, reason=f"not measured in alternation: {reason}")
        return
    with reporter.stage(TIMING) as update:
        rates = measure_throughput(
            timed[0], timed[1], tasks, batch_size=batch_size, seed=seed, on_progress=update
        )
        memory = (
            measure_memory(meter, resident, timed[0].answer, timed[1].answer, batches)
            if meter
            else None
        )
    write_throughput(base, candidate, rates=rates, memory=memory)


def _with_runtime_of(run: StoredRun, source: Source) -> Source:
    """Return the source with the KV cache, the reduction and the adapter of an evaluation."""
    settings = replace(
        source.settings,
        kv_cache=described_type(run.fingerprint.get("kv_cache")),
        reduce=described_rule(run.fingerprint.get(VISUAL_TOKENS)),
        no_adapter=not uses_adapter(run.fingerprint),
    )
    return replace(source, settings=settings)


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
            "kv_cache": describe_cache(model),
            VISUAL_TOKENS: describe_reduction(model),
        }
        for key, value in current.items():
            before = run.fingerprint.get(key)
            if before != value:
                return f"{run.name} was evaluated with {key} {before}, and would now run {value}"
    return ""
