from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from eval_files import package_files
from eval_models import small_model

from vlpress.eval.answering.throughput import (
    BATCHES,
    DECODE_ROWS,
    DECODE_TOKENS,
    LEAST,
    RATES,
    Alternation,
    TimedModel,
    Timing,
    choose_batches,
    measure_throughput,
    time_alternating,
)
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.task import Item, Task
from vlpress.model.processing.processor import Processor


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    package_files(tmp_path, monkeypatch)
    return open_task("builtin-mmbench", max_new_tokens=3)


class FakeModel:
    """Takes a given time for each batch, and writes down when it was asked what."""

    def __init__(self, name: str, log: list[tuple[str, list[str]]], seconds: Sequence[float]):
        self._name, self._log, self._seconds = name, log, [1.0, *seconds]  # the first warms up

    def time(self, items: Sequence[Item]) -> Timing:
        self._log.append((self._name, [item.id for item in items]))
        seconds = self._seconds.pop(0)
        return Timing(len(items), seconds, 100, seconds / 2, 32, seconds / 4)


def measure(task: Task, base: Any, candidate: Any, **options: Any) -> dict[str, Any]:
    return measure_throughput(base, candidate, [task], batch_size=3, **options)


def test_models_take_turns_on_the_same_batches_after_a_warm_up(task: Task) -> None:
    log: list[tuple[str, list[str]]] = []
    ones = [1.0] * BATCHES
    found = measure(task, FakeModel("base", log, ones), FakeModel("candidate", log, ones))
    warm, timed = log[:2], log[2:]
    assert [name for name, _ in warm] == ["base", "candidate"]
    order = ["base", "candidate", "candidate", "base"]
    assert [name for name, _ in timed] == (order * BATCHES)[: 2 * BATCHES]
    asked = {name: [ids for who, ids in timed if who == name] for name in ("base", "candidate")}
    assert asked["base"] == asked["candidate"]
    flat = [key for ids in asked["base"] for key in ids]
    assert len(set(flat)) == len(flat) == found["questions"]


def test_ratios_are_taken_within_pairs(task: Task) -> None:
    # The machine is three times as slow in the second half: no ratio may see it.
    base, candidate = [1.0, 1.0, 3.0, 3.0, 3.0], [2.0, 2.0, 6.0, 6.0, 12.0]
    found = measure(task, FakeModel("b", [], base), FakeModel("c", [], candidate))
    size = found["batch_size"]
    rate = found["items_per_second"]
    assert rate["ratio"] == pytest.approx(0.5) and rate["spread"] == pytest.approx([0.25, 0.5])
    assert rate["base"] == pytest.approx(size / 3) and rate["candidate"] == pytest.approx(size / 6)
    assert found["prefill_tokens_per_second"]["base"] == pytest.approx(100 / 1.5)
    assert found["decode_tokens_per_second"]["candidate"] == pytest.approx(32 / 1.5)


def test_progress_is_reported_after_every_pair(task: Task) -> None:
    told: list[tuple[int, int]] = []
    ones = [1.0] * BATCHES
    measure(
        task,
        FakeModel("b", [], ones),
        FakeModel("c", [], ones),
        on_progress=lambda done, total, _: told.append((done, total)),
    )
    assert told == [(n + 1, BATCHES) for n in range(BATCHES)]


def test_batches_are_drawn_by_seed_within_the_batch_size(task: Task) -> None:
    ids = [[item.id for item in batch] for batch in choose_batches([task], 8, seed=1)]
    assert ids == [[item.id for item in batch] for batch in choose_batches([task], 8, seed=1)]
    assert ids != [[item.id for item in batch] for batch in choose_batches([task], 8, seed=2)]
    assert {len(batch) for batch in ids} == {LEAST} and len(ids) == BATCHES
    assert {len(batch) for batch in choose_batches([task], 1)} == {1}


def test_few_questions_give_fewer_batches(task: Task) -> None:
    from dataclasses import replace

    few = replace(task, items=task.items[:3])
    assert [len(batch) for batch in choose_batches([few], 8)] == [2]
    with pytest.raises(ValueError):
        choose_batches([replace(task, items=())], 8)


def test_a_model_is_timed_over_all_its_phases(task: Task, processor: Processor) -> None:
    timing = TimedModel(small_model(0), processor).time(task.items[: DECODE_ROWS + 1])
    assert timing.items == DECODE_ROWS + 1
    assert timing.decoded_tokens == DECODE_ROWS * DECODE_TOKENS
    assert min(timing.seconds, timing.prefill_seconds, timing.decode_seconds) > 0
    assert timing.prompt_tokens > 0 and timing.prefill_items == DECODE_ROWS
    assert 0 < timing.vision_seconds < timing.seconds
    assert set(timing.rates()) == set(RATES)


def test_latencies_are_seconds_per_question_and_compared_within_batches(task: Task) -> None:
    def timing(vision: float, prefill: float) -> Timing:
        return Timing(4, 9.0, 100, prefill, 32, 1.0, prefill_items=2, vision_seconds=vision)

    slow, fast = timing(2.0, 3.0), timing(1.0, 1.0)
    assert slow.latencies() == {
        "vision_seconds": 0.5,
        "prefill_seconds": 1.5,
        "first_token_seconds": 2.0,
    }
    batches = [{"base": slow, "4": fast}, {"base": slow, "4": slow}, {"base": fast, "4": fast}]
    found = Alternation(batches, {}).latency("base", "4")["first_token_seconds"]
    assert found == {"base": 2.0, "candidate": 0.75, "ratio": 1.0, "spread": [0.375, 1.0]}


def test_more_than_two_models_take_turns(task: Task) -> None:
    log: list[tuple[str, list[str]]] = []
    models: Any = {name: FakeModel(name, log, [1.0] * BATCHES) for name in ("base", "9", "4")}
    measured = time_alternating(models, [task], batch_size=3)
    assert [name for name, _ in log[3:]] == (["base", "9", "4", "4", "9", "base"] * 3)[: 3 * 5]
    assert measured.sizes["batches"] == BATCHES
    assert measured.throughput("base", "9")["items_per_second"]["ratio"] == 1.0
