"""Peak memory of two models, each measured in the same way, in alternation.

The peak of a whole evaluation says little about a model: on the CPU it is that of the process,
which may have held other models before. Here a model's memory is the rise when it is loaded and
used for the first time, plus the largest rise while it answers a batch. Both models answer the same
batches, in an order that is reversed from batch to batch.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from ...common.heap import trim_heap
from ...common.progress import peak_memory
from ..tasks.task import Item

MEMORY_BATCHES = 2
"""Batches that each model answers; even, so that each model is first as often as the other."""
SIDES = ("base", "candidate")
_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # see proc_pid_clear_refs(5)

Answer = Callable[[Sequence[Item]], object]


class Meter(Protocol):
    """Memory in use, in bytes, and its peak since the last reset."""

    kind: str

    def used(self) -> int:
        """Memory in use, after unused memory was returned."""

    def reset(self) -> None:
        """Set the peak to the memory in use."""

    def peak(self) -> int:
        """The largest memory in use since the last reset."""


class ProcessMeter:
    """Resident memory of this process; Linux only.

    Raises:
        OSError: the peak cannot be reset.
    """

    kind = "memory of the process (RSS)"

    def __init__(self) -> None:
        self.reset()

    def used(self) -> int:
        """See `Meter`."""
        gc.collect()
        trim_heap()
        return int(psutil.Process().memory_info().rss)

    def reset(self) -> None:
        """See `Meter`."""
        _RESET.write_text(_RESET_PEAK)

    def peak(self) -> int:
        """See `Meter`."""
        return peak_memory()


class GpuMeter:
    """Memory of the tensors on a GPU."""

    kind = "memory of the tensors on the GPU"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def used(self) -> int:
        """See `Meter`."""
        gc.collect()
        return int(torch.cuda.memory_allocated(self._device))

    def reset(self) -> None:
        """See `Meter`."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """See `Meter`."""
        return int(torch.cuda.max_memory_allocated(self._device))


def find_meter(device: torch.device) -> Meter | None:
    """The meter of a device; None where the peak cannot be measured."""
    if device.type == "cuda":
        return GpuMeter(device)
    # With a GPU in use `peak_memory` returns its peak, not that of the process.
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]  # torch has no annotation
        return None
    try:
        return ProcessMeter()
    except OSError:
        return None


def measure_memory(
    meter: Meter,
    resident: dict[str, int],
    base: Answer,
    candidate: Answer,
    batches: Sequence[Sequence[Item]],
) -> dict[str, Any]:
    """Measure the peak memory of both models on the same batches, in alternation.

    Args:
        meter: of the models' device.
        resident: by the names in `SIDES`, the rise of `meter.used` when the model was loaded and
            used for the first time, in bytes.
        base: has the original answer a batch.
        candidate: has the quantized model answer a batch.
        batches: at least one; the first `MEMORY_BATCHES` are used.

    Returns:
        `kind`, `batches`, `batch_size`, and for each of `SIDES` `resident_bytes`, `rise_bytes` (the
        largest rise while answering) and their sum `peak_bytes`; `ratio`: candidate / base.
    """
    answers = dict(zip(SIDES, (base, candidate), strict=True))
    rises: dict[str, list[int]] = {side: [] for side in SIDES}
    used = batches[:MEMORY_BATCHES]
    for number, batch in enumerate(used):
        for side in SIDES if number % 2 == 0 else SIDES[::-1]:
            before = meter.used()
            meter.reset()
            answers[side](batch)
            rises[side].append(max(meter.peak() - before, 0))
    sides = {
        side: {
            "resident_bytes": resident[side],
            "rise_bytes": max(rises[side]),
            "peak_bytes": resident[side] + max(rises[side]),
        }
        for side in SIDES
    }
    whole = sides["base"]["peak_bytes"]
    return {
        "kind": meter.kind,
        "batches": len(used),
        "batch_size": len(used[0]),
        **sides,
        "ratio": sides["candidate"]["peak_bytes"] / whole if whole else None,
    }
