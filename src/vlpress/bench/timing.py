"""Timing: medians of interleaved rounds, and the bandwidth of memory beside them.

Machines are noisy and shared, so what is compared is timed in turns within one run, and results are
given as ratios. Weights are taken from many copies in turn: a model's layer is not in any cache
when its turn comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch

from ..quant.kernels import library

COPIES_BYTES = 512 * 2**20
"""Distinct copies of a weight take at least so much memory together."""
ROUNDS, BUDGET = 9, 0.12
"""Turns of each kind that count, and seconds of one turn."""


def copies_of(size: int) -> int:
    """How many copies of so many bytes no cache can hold."""
    return max(2, -(-COPIES_BYTES // size))


def time_in_turns(calls: Mapping[str, Sequence[Callable[[], object]]]) -> dict[str, float]:
    """Median seconds of a call of each kind; a first turn warms up and does not count.

    Args:
        calls: by name one call for each copy of the weight; a turn goes through as many as its
            time allows, beginning where the last one ended.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    at = dict.fromkeys(calls, 0)
    for turn in range(ROUNDS + 1):
        for name, copies in calls.items():
            done, begin = 0, time.perf_counter()
            while True:
                copies[at[name] % len(copies)]()
                at[name] += 1
                done += 1
                spent = time.perf_counter() - begin
                if spent > BUDGET:
                    break
            if turn:
                times[name].append(spent / done)
    return {name: median(values) for name, values in times.items()}


def read_bandwidth() -> float:
    """Bytes per second at which torch's threads together read memory that no cache holds."""
    memory = torch.ones(COPIES_BYTES, dtype=torch.uint8)
    seconds = time_in_turns({"read": [lambda: library.read_memory(memory)]})["read"]
    return COPIES_BYTES / seconds
