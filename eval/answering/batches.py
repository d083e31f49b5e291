"""Batches of a task's items, and the loop that processes them and stores records.

Batches are planned from all items of a round and do not depend on the records stored before: a run
that is interrupted and resumed forms the same batches. A round holds the questions that one call
added (`rounds`). Answers, log-probabilities and divergences use the same plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ...common.distributed import Communicator, Message, all_gather, distribute
from ...model.finite import NotFiniteError
from ..tasks.task import Item, Task
from .predictions import Record

WINDOW = 8
"""Batches whose items are sorted by length together."""

OnProgress = Callable[[str, int, int, str], None]
"""`on_progress(task, done, total, detail)`, called after every batch."""


@dataclass(frozen=True)
class Batch:
    """Items that are processed together."""

    items: list[Item]
    planning_seconds: float
    """Time per item spent on measuring prompt lengths."""


class Store(Protocol):
    """Records by the items' keys, such as `RecordStore`."""

    @property
    def records(self) -> Container[str]:
        """The stored records."""
        ...

    def append(self, records: Sequence[Record]) -> None:
        """Add records and wait until they are on disk."""
        ...


def process_items(
    task: Task,
    store: Store,
    measure_lengths: Callable[[Sequence[Item]], list[int]],
    work: Callable[[Batch], list[Record]],
    report: Callable[[], None],
    *,
    batch_size: int,
    comm: Communicator,
) -> None:
    """Process every item of a task without a stored record, batch by batch, and store the records.

    Args:
        task: the items.
        store: must hold the same records on every rank; rank 0 writes.
        measure_lengths: prompt length of each item.
        work: computes the records of a batch; runs on one of the ranks.
        report: called after every batch.
        batch_size: items per batch, at least 1.
        comm: ranks that share the batches.

    Raises:
        ValueError: the batch size is less than 1.
        NotFiniteError: raised by `work`; the message names the benchmark.
    """
    if batch_size < 1:
        raise ValueError(f"batch size is {batch_size}; give at least 1")
    batches = _pending_batches(task, store, measure_lengths, batch_size, comm)
    with located(task):
        for _, records in distribute(comm, batches, lambda batch: Message(work(batch))):
            store.append(records.value)
            report()


def _pending_batches(
    task: Task,
    store: Store,
    measure_lengths: Callable[[Sequence[Item]], list[int]],
    batch_size: int,
    comm: Communicator,
) -> Iterator[Batch]:
    """Yield the batches of the plan without the items whose records are stored."""
    rounds = task.items_by_round()
    for window in (part for items in rounds for part in plan_windows(items, batch_size)):
        if all(item.key in store.records for item in window):
            continue
        started = time.perf_counter()
        lengths = gather_lengths(comm, window, measure_lengths)
        seconds = (time.perf_counter() - started) / len(window)
        for batch in plan_batches(window, lengths, batch_size):
            if pending := [item for item in batch if item.key not in store.records]:
                yield Batch(pending, seconds)


@contextmanager
def located(task: Task) -> Iterator[None]:
    """Add the name of the benchmark to errors about values that are not finite."""
    try:
        yield
    except NotFiniteError as error:
        raise error.within(task.name) from error


def gather_lengths(
    comm: Communicator,
    items: Sequence[Item],
    measure_lengths: Callable[[Sequence[Item]], list[int]],
) -> list[int]:
    """Measure the lengths of items, a contiguous share on each rank."""
    bounds = [rank * len(items) // comm.world_size for rank in range(comm.world_size + 1)]
    share = items[bounds[comm.rank] : bounds[comm.rank + 1]]
    return [length for part in all_gather(comm, measure_lengths(share)) for length in part]


def plan_windows(items: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """Cut the items into windows of `WINDOW` batches, items with the same first image together."""
    first: dict[str, int] = {}
    order = []
    for index, item in enumerate(items):
        key = item.images[0].digest if item.images else f"none {index}"
        order.append((first.setdefault(key, index), index))
    ordered = [items[index] for _, index in sorted(order)]
    size = WINDOW * batch_size
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def plan_batches(
    window: Sequence[Item], lengths: Sequence[int], batch_size: int
) -> list[list[Item]]:
    """Cut a window into batches by prompt length, longest first; ties keep their order."""
    indices = sorted(range(len(window)), key=lambda index: -lengths[index])
    ordered = [window[index] for index in indices]
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
