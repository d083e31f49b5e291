"""Throughput of two models on the same questions, measured in alternation.

Rates from two evaluations at different times depend on the load of the machine as much as on the
models. Here base and candidate answer the same batches alternately, in an order that is reversed
from batch to batch, and each ratio is computed within a pair of consecutive measurements.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
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

    def rates(self) -> dict[str, float]:
        """Return items and tokens per second by the names of `RATES`."""
        values = (
            self.items / self.seconds,
            self.prompt_tokens / self.prefill_seconds,
            self.decoded_tokens / self.decode_seconds,
        )
        return dict(zip(RATES, values, strict=True))


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
        prompts, features = self.answer(items)
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
        )

    @torch.inference_mode()
    def answer(self, items: Sequence[Item]) -> tuple[list[Prompt], Sequence[Sequence[Features]]]:
        """Answer a batch as in an evaluation; return its prompts and image features."""
        # A new cache each time, because image encoding is part of the time to answer.
        prompts, features = FeatureCache(self.model, self._processor).prompts(items)
        generate(
            self.model,
            prompts,
            max_new_tokens=min(item.max_new_tokens for item in items),
            stop_ids=self._processor.stop_ids,
            features=features,
        )
        return prompts, features

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
    batches = choose_batches(tasks, batch_size, seed)
    timed: list[dict[str, Timing]] = []
    for side in (base, candidate):
        side.time(batches[0][:LEAST])  # warm-up: caches, kernels, memory
    meter = LoadMeter()
    for number, batch in enumerate(batches):
        pair = {"base": base, "candidate": candidate}
        order = SIDES if number % 2 == 0 else SIDES[::-1]
        timed.append({side: pair[side].time(batch) for side in order})
        if on_progress is not None:
            on_progress(number + 1, len(batches), "")
    return {
        "batches": len(batches),
        "batch_size": len(batches[0]),
        "questions": sum(map(len, batches)),
        "load": meter.read(),
        **_summarize([{side: t.rates() for side, t in pair.items()} for pair in timed]),
    }


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


def _summarize(pairs: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Compute medians, ratio and spread of each rate over the pairs."""
    summary = {}
    for rate in RATES:
        ratios = [pair["candidate"][rate] / pair["base"][rate] for pair in pairs]
        summary[rate] = {
            **{side: median(pair[side][rate] for pair in pairs) for side in SIDES},
            "ratio": median(ratios),
            "spread": [min(ratios), max(ratios)],
        }
    return summary
