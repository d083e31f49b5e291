"""Throughput of models on the same questions, measured in alternation.

Rates from two evaluations at different times depend on the load of the machine as much as on the
models. Here base and candidates answer the same batches alternately, in an order that is reversed
from batch to batch, and each ratio is computed within the measurements of one batch.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from ...bench.machine_load import LoadMeter
from ...model.features import Features
from ...model.generation import generate
from ...model.processing.inputs import Prompt
from ...model.processing.processor import Processor
from ...model.qwen_vl import QwenVL
from ..tasks.task import Item, Task
from .vision_features import FeatureCache

BATCHES = 5
"""Pairs of measurements; odd, so that the median is one of them."""
SHARE = 50
"""A batch has one question in this many: timing costs about a tenth of an evaluation."""
LEAST = 2
"""Minimum number of questions in a batch."""
DECODE_TOKENS = 16
"""Decoded tokens that are timed; stop tokens are ignored, since answers may have one token."""
DECODE_ROWS = 4
"""Maximum number of prompts in the timed decoding."""
RATES = ("items_per_second", "prefill_tokens_per_second", "decode_tokens_per_second")
LATENCIES = ("vision_seconds", "prefill_seconds", "first_token_seconds")
"""Of a question: from its image file to the features, from these to the first token, and both."""
SIDES = ("base", "candidate")

OnPair = Callable[[int, int, str], None]
"""`on_progress(done, total, detail)`, called after every pair of measurements."""


@dataclass(frozen=True)
class Timing:
    """Times of one model for one batch."""

    items: int
    seconds: float  # image preprocessing, vision tower, prefill and decoding of the answers
    prompt_tokens: int
    prefill_seconds: float  # from vision features to the first token
    decoded_tokens: int
    decode_seconds: float  # of the tokens after the first
    prefill_items: int = 0  # questions of `prefill_seconds`
    vision_seconds: float = 0.0  # image preprocessing and vision tower of the batch

    def rates(self) -> dict[str, float]:
        """Return items and tokens per second by the names of `RATES`."""
        values = (
            self.items / self.seconds,
            self.prompt_tokens / self.prefill_seconds,
            self.decoded_tokens / self.decode_seconds,
        )
        return dict(zip(RATES, values, strict=True))

    def latencies(self) -> dict[str, float]:
        """Return seconds per question by the names of `LATENCIES`."""
        vision = self.vision_seconds / self.items
        prefill = self.prefill_seconds / self.prefill_items
        return dict(zip(LATENCIES, (vision, prefill, vision + prefill), strict=True))


class TimedModel:
    """A model with a timer.

    Args:
        model: in eval mode.
        processor: processor of the model.
    """

    def __init__(self, model: QwenVL, processor: Processor) -> None:
        self.model, self._processor = model, processor

    @torch.inference_mode()
    def time(self, items: Sequence[Item]) -> Timing:
        """Time a batch as in an evaluation, then a few of its prompts decoded to a fixed length.

        Args:
            items: one batch, not empty.
        """
        begin = time.perf_counter()
        prompts, features = self._read(items)
        vision = time.perf_counter() - begin
        self._answer(items, prompts, features)
        seconds = time.perf_counter() - begin
        rows = prompts[:DECODE_ROWS]
        prefill, decode = self._time_phases(rows, features[:DECODE_ROWS])
        return Timing(
            items=len(items),
            seconds=seconds,
            prompt_tokens=sum(map(len, rows)),
            prefill_seconds=prefill,
            decoded_tokens=DECODE_TOKENS * len(rows),
            decode_seconds=decode,
            prefill_items=len(rows),
            vision_seconds=vision,
        )

    @torch.inference_mode()
    def answer(self, items: Sequence[Item]) -> None:
        """Answer a batch as in an evaluation."""
        self._answer(items, *self._read(items))

    def _read(self, items: Sequence[Item]) -> tuple[list[Prompt], Sequence[Sequence[Features]]]:
        """Return the prompts of a batch and the features of their images."""
        # A new cache each time, because image encoding is part of the time to answer.
        read = FeatureCache(self.model, self._processor).prompts(items)
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)  # the time so far is that of the tower
        return read

    def _answer(
        self,
        items: Sequence[Item],
        prompts: Sequence[Prompt],
        features: Sequence[Sequence[Features]],
    ) -> None:
        generate(
            self.model,
            prompts,
            max_new_tokens=min(item.max_new_tokens for item in items),
            stop_ids=self._processor.stop_ids,
            features=features,
        )

    def _time_phases(
        self, prompts: Sequence[Prompt], features: Sequence[Sequence[Features]]
    ) -> tuple[float, float]:
        """Return the seconds until the first token, and those of the `DECODE_TOKENS` after it."""
        times: list[float] = []
        begin = time.perf_counter()
        generate(
            self.model,
            prompts,
            max_new_tokens=1 + DECODE_TOKENS,
            stop_ids=(),
            features=features,
            # Called when the token id is on the host, so a GPU has finished.
            on_token=lambda *_: times.append(time.perf_counter()),
        )
        return times[0] - begin, times[-1] - times[0]


def measure_throughput(
    base: TimedModel,
    candidate: TimedModel,
    tasks: Sequence[Task],
    *,
    batch_size: int,
    seed: int = 0,
    on_progress: OnPair | None = None,
) -> dict[str, Any]:
    """Time both models on the same batches in alternation.

    Args:
        base: the original.
        candidate: the quantized model.
        tasks: source of the questions.
        batch_size: batch size of the evaluation, an upper bound of the one here.
        seed: seed of the sample of questions.
        on_progress: called after every pair of measurements.

    Returns:
        `batches`, `batch_size`, `questions` (number per model), `load` (see `machine_load`), and
        for each of `RATES` the medians `base` and `candidate`, the median `ratio` (candidate /
        base within pairs) and its `spread` (smallest and largest).

    Raises:
        ValueError: the tasks have no items.
    """
    measured = time_alternating(
        {"base": base, "candidate": candidate},
        tasks,
        batch_size=batch_size,
        seed=seed,
        on_progress=on_progress,
    )
    return measured.throughput(*SIDES)


@dataclass(frozen=True)
class Alternation:
    """Times of several models for the same batches."""

    timings: list[dict[str, Timing]]  # of each batch, by model
    load: dict[str, Any]  # see `machine_load`

    @property
    def sizes(self) -> dict[str, Any]:
        """Numbers of batches and questions, and the machine load."""
        counts = [next(iter(timing.values())).items for timing in self.timings]
        return {
            "batches": len(counts),
            "batch_size": counts[0],
            "questions": sum(counts),
            "load": self.load,
        }

    def throughput(self, base: str, candidate: str) -> dict[str, Any]:
        """Compare two of the models; for the result see `measure_throughput`."""
        names = dict(zip(SIDES, (base, candidate), strict=True))
        rates = [
            {side: timing[name].rates() for side, name in names.items()} for timing in self.timings
        ]
        return {**self.sizes, **_summarize(rates, RATES)}

    def latency(self, base: str, candidate: str) -> dict[str, Any]:
        """Compare the times to the first token of two of the models.

        Returns:
            For each of `LATENCIES`, in seconds per question: the medians `base` and `candidate`,
            the median `ratio` and its `spread`, as in `measure_throughput`.
        """
        names = dict(zip(SIDES, (base, candidate), strict=True))
        seconds = [
            {side: timing[name].latencies() for side, name in names.items()}
            for timing in self.timings
        ]
        return _summarize(seconds, LATENCIES)


def time_alternating(
    models: Mapping[str, TimedModel],
    tasks: Sequence[Task],
    *,
    batch_size: int,
    seed: int = 0,
    on_progress: OnPair | None = None,
) -> Alternation:
    """Time models on the same batches in alternation; arguments as for `measure_throughput`.

    Args:
        models: by name.
        tasks: see above.
        batch_size: see above.
        seed: see above.
        on_progress: called after every batch.

    Raises:
        ValueError: the tasks have no items.
    """
    batches, names = choose_batches(tasks, batch_size, seed), list(models)
    timed: list[dict[str, Timing]] = []
    for model in models.values():
        model.time(batches[0][:LEAST])  # warm-up: caches, kernels, memory
    meter = LoadMeter()
    for number, batch in enumerate(batches):
        order = names if number % 2 == 0 else names[::-1]
        timed.append({name: models[name].time(batch) for name in order})
        if on_progress is not None:
            on_progress(number + 1, len(batches), "")
    return Alternation(timed, meter.read())


def choose_batches(tasks: Sequence[Task], batch_size: int, seed: int = 0) -> list[list[Item]]:
    """Sample questions of all tasks in `BATCHES` batches of equal size; fewer for few questions.

    Raises:
        ValueError: the tasks have no items.
    """
    items = [item for task in tasks for item in task.items]
    if not items:
        raise ValueError("no question can be asked; throughput needs at least one")
    size = min(max(LEAST, len(items) // SHARE), batch_size, len(items))
    count = min(BATCHES, len(items) // size)
    drawn = random.Random(seed).sample(items, count * size)
    return [drawn[begin : begin + size] for begin in range(0, len(drawn), size)]


def _summarize(
    pairs: Sequence[dict[str, dict[str, float]]], names: Sequence[str]
) -> dict[str, Any]:
    """Compute medians, ratio and spread of each value over the pairs."""
    summary = {}
    for name in names:
        ratios = [pair["candidate"][name] / pair["base"][name] for pair in pairs]
        summary[name] = {
            **{side: median(pair[side][name] for pair in pairs) for side in SIDES},
            "ratio": median(ratios),
            "spread": [min(ratios), max(ratios)],
        }
    return summary
