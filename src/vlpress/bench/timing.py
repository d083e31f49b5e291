"""Timing by medians of interleaved rounds, and the memory bandwidth.

Machines are noisy and shared, so that candidates are timed in turns within one run and compared by
ratios. Each call uses another copy of the weight, because in a model a layer's weights have left
the caches between two tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch

from ..quant.kernels import library

COPIES_BYTES = 512 * 2**20
"""Smallest total size of the copies of a weight, beyond every cache."""
ROUNDS, BUDGET = 9, 0.12
"""Measured turns per kind, and seconds per turn."""


def copies_of(size: int) -> int:
    """Number of copies of `size` bytes that together exceed every cache, at least 2."""
    return max(2, -(-COPIES_BYTES // size))


def time_in_turns(
    calls: Mapping[str, Sequence[Callable[[], object]]],
    *,
    rounds: int | None = None,
    budget: float | None = None,
) -> dict[str, float]:
    """Measure the median seconds of a call of each kind, after a turn that warms up.

    Args:
        calls: one call per copy of the weight, by kind. A turn runs calls for `budget` seconds and
            starts at the copy after the last one of the previous turn.
        rounds: number of measured turns, at least 1; default `ROUNDS`.
        budget: seconds of a turn; default `BUDGET`.

    Returns:
        Seconds by kind.
    """
    rounds, budget = rounds or ROUNDS, budget or BUDGET
    times: dict[str, list[float]] = {name: [] for name in calls}
    next_copy = dict.fromkeys(calls, 0)
    for turn in range(rounds + 1):
        for name, copies in calls.items():
            count, begin = 0, time.perf_counter()
            while True:
                copies[next_copy[name] % len(copies)]()
                next_copy[name] += 1
                count += 1
                seconds = time.perf_counter() - begin
                if seconds > budget:
                    break
            if turn:
                times[name].append(seconds / count)
    return {name: median(values) for name, values in times.items()}


def read_bandwidth() -> float:
    """Measure the read bandwidth of torch's threads together, in bytes per second."""
    memory = torch.ones(COPIES_BYTES, dtype=torch.uint8)
    seconds = time_in_turns({"read": [lambda: library.read_memory(memory)]})["read"]
    return COPIES_BYTES / seconds
