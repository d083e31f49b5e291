"""Put every item of a task to a model and store the answers.

The runner sees the model through a `Responder`, so that a served model can take its place. The
batches are planned from the whole task and do not depend on what was answered before: a run that
is stopped and started again asks the rest in the same company.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from ...common.distributed import SINGLE_PROCESS, Communicator, Message, all_gather, distribute
from ...model.finite import NotFiniteError
from ...model.generation import Sampling, generate
from ...model.processing.processor import Processor
from ...model.qwen_vl import QwenVL
from ..tasks.task import Item, Task
from .predictions import Prediction, Record, open_shared, prediction_record
from .vision_features import FeatureCache, pictures

WINDOW = 8  # batches whose items are sorted by length together
NAMED = 8  # items that an error names

OnProgress = Callable[[str, int, int, str], None]
"""`on_progress(task, done, total, detail)`, called after every batch; the detail is the rate."""


@dataclass(frozen=True)
class Answer:
    """What a model said to one item."""

    text: str
    n_tokens: int | None  # None: a server that does not say
    stopped: bool  # ended by itself, not at the item's cap
    prompt_tokens: int | None = None  # pictures included
    first_logprobs: Mapping[str, float] | None = None  # the likeliest first tokens, where offered


class Responder(Protocol):
    """Whatever answers items."""

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Prompt lengths, in any unit; items of like length share a batch."""

    def generate(self, items: Sequence[Item]) -> list[Answer]:
        """Answer one batch, greedily and without penalties."""


class ModelResponder:
    """Answers with a model in this process."""

    def __init__(self, model: QwenVL, processor: Processor) -> None:
        self.features = FeatureCache(processor, [model])
        self._model = model
        self._processor = processor

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Prompt lengths in tokens."""
        # One by one, so that the cache may drop features that a large window has no room for.
        return [len(self.features.prompts([item])[0][0]) for item in items]

    @torch.inference_mode()
    def generate(self, items: Sequence[Item]) -> list[Answer]:
        """Answer one batch, up to the smallest cap of its items.

        Sampling settings are given explicitly: a checkpoint's generation_config may carry a
        repetition penalty, which would change what is measured.
        """
        prompts, (features,) = self.features.prompts(items)
        answers = generate(
            self._model,
            prompts,
            max_new_tokens=min(item.max_new_tokens for item in items),
            stop_ids=self._processor.stop_ids,
            features=features,
            sampling=Sampling(temperature=0.0, repetition_penalty=1.0),
        )
        return [
            Answer(self._processor.decode(a.token_ids), len(a.token_ids), a.stopped, len(prompt))
            for a, prompt in zip(answers, prompts, strict=True)
        ]


def answer_task(
    task: Task,
    responder: Responder,
    path: Path,
    fingerprint: dict[str, Any],
    *,
    batch_size: int,
    on_progress: OnProgress | None = None,
    comm: Communicator = SINGLE_PROCESS,
) -> dict[str, Prediction]:
    """Answer every item that has no stored answer yet.

    An interruption (KeyboardInterrupt included) leaves a file that the same call resumes.

    Args:
        task: what to ask.
        responder: who answers.
        path: the predictions file.
        fingerprint: of the run and the task.
        batch_size: items per batch.
        on_progress: told after every batch.
        comm: who shares the batches; each process is given all answers.

    Returns:
        All predictions by item id.

    Raises:
        ValueError: the file was made with another fingerprint, or the responder returns another
            number of answers than it was given items.
        NotFiniteError: the model computed NaN or infinity; the message names benchmark and items.
            Answers stored before stay, and the same call resumes behind them.
    """
    if batch_size < 1:
        raise ValueError(f"batch size is {batch_size}; give at least 1")
    with located(task), closing(open_shared(comm, path, "predictions", fingerprint)) as store:
        report = _Progress(on_progress, task, len(store.records))
        report(len(store.records))
        for window in plan_windows(task.items, batch_size):
            if all(item.id in store.records for item in window):
                continue
            started = time.perf_counter()
            lengths = shared_lengths(comm, window, responder.lengths)
            # Every picture was looked at: a part of what answers cost.
            looked = (time.perf_counter() - started) / len(window)
            batches = plan_batches(window, lengths, batch_size)
            pending = [[i for i in batch if i.id not in store.records] for batch in batches]

            def answer(batch: Sequence[Item], looked: float = looked) -> Message:
                return Message(_answer(batch, responder, looked))

            for _, answers in distribute(comm, filter(None, pending), answer):
                store.append(answers.value)
                report(len(store.records))
        return {key: Prediction(**record) for key, record in store.records.items()}


def _answer(batch: Sequence[Item], responder: Responder, looked: float) -> list[Record]:
    """Records of a batch; `looked` seconds were spent on each item before."""
    started = time.perf_counter()
    with naming(batch):
        answers = responder.generate(batch)
    seconds = looked + (time.perf_counter() - started) / len(batch)
    if len(answers) != len(batch):
        raise ValueError(
            f"{len(answers)} answers came back for {len(batch)} items; "
            "a responder answers each item once"
        )
    return [
        prediction_record(
            Prediction(
                item.id,
                a.text,
                a.n_tokens,
                a.stopped,
                round(seconds, 6),
                a.prompt_tokens,
                a.first_logprobs,
            )
        )
        for item, a in zip(batch, answers, strict=True)
    ]


@contextmanager
def located(task: Task) -> Iterator[None]:
    """Put the benchmark's name in front of an error about values that are not finite."""
    try:
        yield
    except NotFiniteError as error:
        raise error.within(task.name) from error


@contextmanager
def naming(batch: Sequence[Item]) -> Iterator[None]:
    """Put the ids of the items in front of an error about values that are not finite."""
    try:
        yield
    except NotFiniteError as error:
        if not error.rows:
            raise
        ids = [batch[row].id for row in error.rows]
        shown = ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" * (len(ids) > NAMED))
        raise error.within(f"item{'s' * (len(ids) > 1)} {shown}") from error


def shared_lengths(
    comm: Communicator, items: Sequence[Item], measure: Callable[[Sequence[Item]], list[int]]
) -> list[int]:
    """Lengths of items, of which each process measures a stretch."""
    bounds = [rank * len(items) // comm.count for rank in range(comm.count + 1)]
    mine = items[bounds[comm.index] : bounds[comm.index + 1]]
    return [length for part in all_gather(comm, measure(mine)) for length in part]


def plan_windows(items: Sequence[Item], batch_size: int) -> list[list[Item]]:
    """Cut the items into windows; those that show the same first picture come together."""
    first: dict[str, int] = {}
    order = []
    for place, item in enumerate(items):
        key = next((picture.digest for picture in pictures(item)), f"none {place}")
        order.append((first.setdefault(key, place), place))
    ordered = [items[place] for _, place in sorted(order)]
    size = WINDOW * batch_size
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def plan_batches(
    window: Sequence[Item], lengths: Sequence[int], batch_size: int
) -> list[list[Item]]:
    """Batch a window by prompt length, longest first; ties keep their order."""
    places = sorted(range(len(window)), key=lambda place: -lengths[place])
    ordered = [window[place] for place in places]
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


class _Progress:
    """Tells how many items are answered, and how fast in this call."""

    def __init__(self, on_progress: OnProgress | None, task: Task, done: int) -> None:
        self._on_progress = on_progress
        self._task = task
        self._before = done  # answered by earlier calls: they say nothing about the speed
        self._started = time.perf_counter()

    def __call__(self, done: int) -> None:
        if self._on_progress is None:
            return
        here, seconds = done - self._before, time.perf_counter() - self._started
        rate = f"{here / seconds:.3g} items/s" if here and seconds else ""
        self._on_progress(self._task.name, done, len(self._task.items), rate)
