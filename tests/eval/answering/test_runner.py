from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from eval_files import package_files
from eval_models import TableResponder, read_messages, right, small_model
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.answering.batches import plan_batches, plan_windows
from vlpress.eval.answering.predictions import read_predictions
from vlpress.eval.answering.runner import Completion, ModelResponder, answer_task
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.fidelity.logprob_cache import LogProbReader
from vlpress.eval.fidelity.measure import measure_task, store_logprobs
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.files import image_store
from vlpress.eval.tasks.task import Item, Task
from vlpress.model.features import Features
from vlpress.model.processing.processor import Processor


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    package_files(tmp_path, monkeypatch)
    return open_task("builtin-mmbench", max_new_tokens=3)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in ("batches", "runner"):
        fake = SimpleNamespace(perf_counter=lambda: clock.now)
        monkeypatch.setattr(f"vlpress.eval.answering.{module}.time", fake)
    return clock


class Clock:
    """Time that passes only in `Slow` responders."""

    now = 100.0


class Slow(TableResponder):
    """Takes a given time for each call."""

    def __init__(
        self, clock: Clock, *, planning: float = 0, answering: float = 0, **options: Any
    ) -> None:
        super().__init__(**options)
        self._clock, self._planning, self._answering = clock, planning, answering

    def lengths(self, items: Any) -> list[int]:
        self._clock.now += self._planning
        return super().lengths(items)

    def generate(self, items: Any) -> list[Completion]:
        self._clock.now += self._answering
        return super().generate(items)


def run(task: Task, responder: Any, path: Path, batch_size: int = 5) -> dict[str, str]:
    predictions = answer_task(task, responder, path, {"setup": 1}, batch_size=batch_size)
    return {key: p.prediction for key, p in predictions.items()}


def test_every_item_is_asked_once(task: Task, tmp_path: Path) -> None:
    responder = TableResponder()
    found = run(task, responder, tmp_path / "p.jsonl")
    assert sorted(responder.seen) == sorted(item.id for item in task.items)
    assert found == {item.id: right(item) for item in task.items}
    assert max(map(len, responder.batches)) == 5


def test_interrupted_run_resumes_with_the_same_batches(task: Task, tmp_path: Path) -> None:
    whole = TableResponder()
    expected = run(task, whole, tmp_path / "whole.jsonl")
    path = tmp_path / "p.jsonl"
    first = TableResponder(interrupt_after=3)
    with pytest.raises(KeyboardInterrupt):
        run(task, first, path)
    assert len(read_predictions(path)) == 15
    second = TableResponder()
    assert run(task, second, path) == expected
    assert not set(first.seen) & set(second.seen)
    assert first.batches + second.batches == whole.batches
    third = TableResponder()
    assert run(task, third, path) == expected
    assert third.seen == []


def test_progress_counts_answers_and_gives_the_rate(
    task: Task, tmp_path: Path, clock: Clock
) -> None:
    seen: list[tuple[str, int, int, str]] = []

    def progress(*values: Any) -> None:
        seen.append(values)

    for limit in (1, None):
        with suppress(KeyboardInterrupt):
            answer_task(
                task,
                Slow(clock, answering=0.5, interrupt_after=limit),
                tmp_path / "p.jsonl",
                {},
                batch_size=16,
                on_progress=progress,
            )
    name = "builtin-mmbench"
    assert seen == [
        (name, 0, 32, ""),
        (name, 16, 32, "32 items/s"),
        (name, 16, 32, ""),  # no answer by this call yet
        (name, 32, 32, "32 items/s"),
    ]


def test_wrong_number_of_answers_is_refused(task: Task, tmp_path: Path) -> None:
    class Short(TableResponder):
        def generate(self, items: Any) -> list[Completion]:
            return super().generate(items)[:-1]

    with pytest.raises(ValueError, match=r"4 answers.* 5 items"):
        run(task, Short(), tmp_path / "p.jsonl")
    with pytest.raises(ValueError, match="batch size is 0"):
        run(task, TableResponder(), tmp_path / "q.jsonl", batch_size=0)


def test_time_includes_planning(task: Task, tmp_path: Path, clock: Clock) -> None:
    run(task, Slow(clock, planning=3.2, answering=0.5), tmp_path / "p.jsonl")
    seconds = Counter(p.seconds for p in read_predictions(tmp_path / "p.jsonl").values())
    assert seconds == {0.2: 30, 0.35: 2}  # batches of five, and one of two


def test_items_with_the_same_image_are_consecutive(task: Task) -> None:
    [window] = plan_windows(task.items[::-1], 8)
    units = [item.fields["unit"] for item in window]
    assert all(len(set(units[i : i + 4])) == 1 for i in range(0, len(units), 4))


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 7))
def test_batches_hold_everything_sorted(lengths: list[int], batch_size: int) -> None:
    items = [Item(str(i), [], 1, {}) for i in range(len(lengths))]
    batches = plan_batches(items, lengths, batch_size)
    flat = [int(item.id) for batch in batches for item in batch]
    assert Counter(flat) == Counter(range(len(lengths)))
    assert [lengths[i] for i in flat] == sorted(lengths, reverse=True)
    assert all(1 <= len(batch) <= batch_size for batch in batches)


def test_model_answers_do_not_depend_on_batching(
    task: Task, tmp_path: Path, processor: Processor
) -> None:
    model = small_model()
    answers = [
        run(task, ModelResponder(FeatureCache(model, processor)), tmp_path / f"{size}.jsonl", size)
        for size in (1, 7)
    ]
    assert answers[0] == answers[1]
    assert len(set(answers[0].values())) > 1
    stored = read_predictions(tmp_path / "7.jsonl")
    assert all(p.n_tokens in (0, 1, 2, 3) and p.seconds > 0 for p in stored.values())
    assert all(p.prompt_tokens and p.prompt_tokens > 20 for p in stored.values())


def test_images_are_decoded_and_encoded_once_for_all_passes(
    task: Task, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image_store.decoded_images.clear()
    model = small_model()
    encoded: list[int] = []
    decoded: list[int] = []
    encode, decode = model.encode, image_store.decode_image

    def count_encode(visuals: Any) -> list[Features]:
        encoded.append(len(visuals))
        return encode(visuals)

    def count_decode(data: bytes, decoding: Any) -> Any:
        decoded.append(len(data))
        return decode(data, decoding)

    monkeypatch.setattr(model, "encode", count_encode)
    monkeypatch.setattr(image_store, "decode_image", count_decode)
    features = FeatureCache(model, processor)
    answers = answer_task(task, ModelResponder(features), tmp_path / "p.jsonl", {}, batch_size=5)
    assert sum(encoded) == features.encoded == len(decoded) == 8  # questions, of 32 rows
    store_logprobs(task, features, answers, tmp_path / "kept", {}, batch_size=5)
    reader = LogProbReader(tmp_path / "kept")
    measure_task(task, features, answers, reader, tmp_path / "f.jsonl", {}, batch_size=3)
    assert sum(encoded) == features.encoded == len(decoded) == 8


def test_lengths_are_those_of_the_prompts_and_need_no_pixels(
    task: Task, processor: Processor
) -> None:
    features = FeatureCache(small_model(), processor)
    lengths = features.lengths(task.items)
    assert features.encoded == 0
    prompts, _ = features.prompts(task.items)
    assert lengths == [len(prompt) for prompt in prompts] and len(set(lengths)) > 1


@pytest.mark.parametrize(("share", "fewest", "most"), [(0, 64, 64), (0.5, 9, 63), (2, 8, 8)])
def test_cache_of_any_size_gives_the_same_features(
    task: Task, processor: Processor, share: float, fewest: int, most: int
) -> None:
    model = small_model()
    roomy = FeatureCache(model, processor)
    roomy.prompts(task.items)
    total = roomy._entries.nbytes
    small = FeatureCache(model, processor, max_bytes=int(share * total))
    for item in (*task.items, *task.items):
        _, [a] = roomy.prompts([item])
        _, [b] = small.prompts([item])
        assert all(torch.equal(x["hidden"], y["hidden"]) for x, y in zip(a, b, strict=True))
        assert small._entries.nbytes <= share * total
    assert roomy.encoded == 8
    assert fewest <= small.encoded <= most  # of 64 uses


def test_cached_images_give_the_prompts_of_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: Processor
) -> None:
    package_files(tmp_path, monkeypatch)
    model = small_model()
    for item in open_task("builtin-mmmu").items:
        [prompt], [features] = FeatureCache(model, processor).prompts([item])
        direct = processor.encode(read_messages(item))
        assert torch.equal(prompt.input_ids, direct.input_ids)
        assert torch.equal(prompt.position_ids, direct.position_ids)
        logits = model([prompt], [features])[0]
        torch.testing.assert_close(logits, model([direct])[0], rtol=1e-4, atol=1e-4)
