"""Map a function over jobs with threads; results come in the order of the jobs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")


def default_threads() -> int:
    """Return OMP_NUM_THREADS if it is a number, or the number of cores."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() and int(value) > 0 else os.cpu_count() or 1


def ordered_map(function: Callable[[J], R], jobs: Iterable[J], threads: int) -> Iterator[R]:
    """Yield `function(job)` for each job, in order.

    Jobs are taken from the iterable in the calling thread, at most `2 * threads` ahead of the
    results, so that jobs and results in memory are bounded.

    Args:
        function: releases the GIL where it takes long.
        jobs: taken once.
        threads: 1 calls the function in this thread.
    """
    if threads == 1:
        yield from map(function, jobs)
        return
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for job in jobs:
                pending.append(pool.submit(function, job))
                if len(pending) >= 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
