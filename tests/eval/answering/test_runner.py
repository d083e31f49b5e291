from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_files import package_files
from eval_models import TableResponder, read_messages, right, small_model
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.answering.predictions import read_predictions
from vlpress.eval.answering.runner import (
    Answer,
    ModelResponder,
    answer_task,
    plan_batches,
    plan_windows,
)
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.task import Item, Task
from vlpress.model.processing.processor import Processor


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    package_files(tmp_path, monkeypatch)
    return open_task("builtin-mmbench", max_new_tokens=3)


def run(task: Task, responder: Any, path: Path, batch_size: int = 5) -> dict[str, str]:
    found = answer_task(task, responder, path, {"setup": 1}, batch_size=batch_size)
    return {key: p.prediction for key, p in found.items()}


def test_every_item_is_asked_once(task: Task, tmp_path: Path) -> None:
    responder = TableResponder()
    found = run(task, responder, tmp_path / "p.jsonl")
    assert sorted(responder.asked) == sorted(item.id for item in task.items)
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
    assert not set(first.asked) & set(second.asked)
    assert first.batches + second.batches == whole.batches
    third = TableResponder()
    assert run(task, third, path) == expected
    assert third.asked == []


def test_progress_counts_answers_and_says_how_fast(task: Task, tmp_path: Path) -> None:
    class Slow(TableResponder):
        def generate(self, items: Any) -> list[Answer]:
            time.sleep(0.1)
            return super().generate(items)

    seen: list[tuple[str, int, int, str]] = []

    def progress(*told: Any) -> None:
        seen.append(told)

    for limit in (1, None):
        with suppress(KeyboardInterrupt):
            answer_task(
                task,
                Slow(interrupt_after=limit),
                tmp_path / "p.jsonl",
                {},
                batch_size=16,
                on_progress=progress,
            )
    name = "builtin-mmbench"
    assert [told[:3] for told in seen] == [(name, n, 32) for n in (0, 16, 16, 32)]
    assert seen[0][3] == seen[2][3] == ""  # nothing is answered yet, or not by this call
    for *_, rate in (seen[1], seen[3]):
        number, unit = rate.split()
        assert unit == "items/s" and 0 < float(number) <= 160


def test_wrong_number_of_answers_is_refused(task: Task, tmp_path: Path) -> None:
    class Short(TableResponder):
        def generate(self, items: Any) -> list[Answer]:
            return super().generate(items)[:-1]

    with pytest.raises(ValueError, match="4 answers came back for 5 items"):
        run(task, Short(), tmp_path / "p.jsonl")
    with pytest.raises(ValueError, match="batch size is 0; give at least 1"):
        run(task, TableResponder(), tmp_path / "q.jsonl", batch_size=0)


def test_time_includes_the_pictures(task: Task, tmp_path: Path) -> None:
    class Slow(TableResponder):
        def lengths(self, items: Any) -> list[int]:
            time.sleep(0.064)
            return super().lengths(items)

    run(task, Slow(), tmp_path / "p.jsonl")
    assert all(p.seconds >= 0.002 for p in read_predictions(tmp_path / "p.jsonl").values())


def test_items_with_the_same_picture_come_together(task: Task) -> None:
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
        run(task, ModelResponder(model, processor), tmp_path / f"{size}.jsonl", size)
        for size in (1, 7)
    ]
    assert answers[0] == answers[1]
    assert len(set(answers[0].values())) > 1
    stored = read_predictions(tmp_path / "7.jsonl")
    assert all(p.n_tokens in (0, 1, 2, 3) and p.seconds > 0 for p in stored.values())
    assert all(p.prompt_tokens and p.prompt_tokens > 20 for p in stored.values())


def test_pictures_are_encoded_once(
    task: Task, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    encoded: list[int] = []
    encode = model.encode

    def counted(visuals: Any) -> list[torch.Tensor]:
        encoded.append(len(visuals))
        return encode(visuals)

    monkeypatch.setattr(model, "encode", counted)
    responder = ModelResponder(model, processor)
    responder.lengths(task.items)
    responder.generate(task.items)
    assert sum(encoded) == responder.features.encoded == 8  # questions, of 32 rows


def test_small_cache_forgets_and_gives_the_same(task: Task, processor: Processor) -> None:
    model = small_model()
    roomy, tight = FeatureCache(processor, [model]), FeatureCache(processor, [model], max_bytes=1)
    for item in (*task.items[:8], *task.items[:8]):
        _, [[a]] = roomy.prompts([item])
        _, [[b]] = tight.prompts([item])
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert roomy.encoded < tight.encoded


def test_cached_pictures_give_the_prompts_of_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: Processor
) -> None:
    package_files(tmp_path, monkeypatch)
    model = small_model()
    for item in open_task("builtin-mmmu").items:
        [prompt], [[features]] = FeatureCache(processor, [model]).prompts([item])
        direct = processor.encode(read_messages(item))
        assert torch.equal(prompt.input_ids, direct.input_ids)
        assert torch.equal(prompt.position_ids, direct.position_ids)
        ours = model([prompt], [features])[0]
        torch.testing.assert_close(ours, model([direct])[0], rtol=1e-4, atol=1e-4)
