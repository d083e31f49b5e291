from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from eval_files import package_files
from eval_models import TableResponder, right, small_model
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.answering.predictions import read_predictions
from vlpress.eval.answering.runner import ModelResponder, answer_task
from vlpress.eval.answering.sampling import (
    GREEDY,
    Decoding,
    first_sample,
    sample_numbers,
    sample_seed,
)
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.task import Item, Task
from vlpress.model.processing.processor import Processor

THREE = Decoding(3, 0.7, seed=5)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    package_files(tmp_path, monkeypatch)
    return open_task("builtin-ocrbench", max_new_tokens=4)


def item(key: str) -> Item:
    return Item(key, [], 4, {"id": key})


def test_a_seed_is_31_bits_of_a_digest() -> None:
    digest = hashlib.sha256(json.dumps([5, "q 1", 2]).encode()).hexdigest()
    assert sample_seed(5, "q 1", 2) == int(digest[:8], 16) // 2


@given(st.integers(0, 2**40), st.text(max_size=8), st.integers(1, 100))
def test_seeds_are_taken_by_every_server(seed: int, question: str, number: int) -> None:
    assert 0 <= sample_seed(seed, question, number) < 2**31


def test_seeds_differ_by_seed_question_and_sample() -> None:
    keys = [(seed, q, n) for seed in (0, 1) for q in ("1", "11", "a") for n in (1, 2, 11)]
    assert len({sample_seed(*key) for key in keys}) == len(keys)


@given(st.lists(st.text(max_size=4), unique=True, max_size=6), st.randoms(), st.integers(1, 4))
def test_seeds_do_not_depend_on_order_number_or_other_questions(
    ids: list[str], random: Any, samples: int
) -> None:
    items = [item(key) for key in ids]
    seeds = {each.key: each.seed for each in Decoding(samples, 1.0).items(items)}
    assert len(seeds) == samples * len(ids)  # keys are unique
    random.shuffle(items)
    some = Decoding(samples + 1, 1.0).items(items[::2])
    assert all(seeds[each.key] == each.seed for each in some if (each.sample or 0) <= samples)


def test_greedy_items_are_those_of_the_task(task: Task) -> None:
    assert GREEDY.items(task.items) == task.items and GREEDY.note == ""
    assert "3 sampled answers" in THREE.note and "1 sampled answer " in Decoding(1, 0.5).note
    assert GREEDY.describe() == {"temperature": 0.0, "repetition_penalty": 1.0}
    assert sample_numbers({"generation": GREEDY.describe()}) == sample_numbers({}) == (None,)
    assert first_sample({"generation": GREEDY.describe(), "seed": 3}) == GREEDY


def test_a_fingerprint_gives_the_decoding_back() -> None:
    decoding = Decoding(4, 0.6, 0.95, 20, 7)
    setup: dict[str, Any] = {"generation": decoding.describe(), "seed": 7}
    assert setup["generation"]["samples"] == 4 and sample_numbers(setup) == (1, 2, 3, 4)
    assert first_sample(setup) == Decoding(1, 0.6, 0.95, 20, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 3}, r"--samples 3 .*--temperature"),
        ({"top_p": 0.9}, r"--top-p 0\.9 .*--temperature"),
        ({"top_k": 20}, r"--top-k 20 .*--temperature"),
        ({"temperature": 1.0, "top_p": 0.0}, r"--top-p 0\b"),
    ],
)
def test_contradictions(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoding(**options)


def test_an_interrupted_run_resumes_with_the_same_records(task: Task, tmp_path: Path) -> None:
    def answer(path: Path, responder: TableResponder) -> None:
        answer_task(THREE.repeat(task), responder, path, {"a": 1}, batch_size=4)

    def say(each: Item) -> str:
        return f"{right(each)} {each.seed}"

    whole, parts = tmp_path / "whole.jsonl", tmp_path / "parts.jsonl"
    answer(whole, TableResponder(say))
    with pytest.raises(KeyboardInterrupt):
        answer(parts, TableResponder(say, interrupt_after=2))
    assert len(read_predictions(parts)) == 8
    resumed = TableResponder(say)
    answer(parts, resumed)
    assert len(resumed.seen) == 3 * len(task.items) - 8
    stored = [read_predictions(path) for path in (whole, parts)]
    assert list(stored[0]) == list(stored[1])
    values = [{k: (p.prediction, p.seed) for k, p in each.items()} for each in stored]
    assert values[0] == values[1]
    one = stored[0]["2:0"]
    assert (one.id, one.sample, one.seed) == ("0", 2, sample_seed(5, "0", 2))
    assert one.prediction == f"word0 {one.seed}"


def test_samples_of_a_model_do_not_depend_on_their_batch(
    task: Task, tmp_path: Path, processor: Processor
) -> None:
    model = small_model()
    asked = THREE.repeat(task)
    answers = [
        answer_task(
            asked,
            ModelResponder(FeatureCache(model, processor), Decoding(3, 3.0, seed=5)),
            tmp_path / f"{size}.jsonl",
            {},
            batch_size=size,
        )
        for size in (2, 27)
    ]
    texts = [{key: each.prediction for key, each in part.items()} for part in answers]
    assert texts[0] == texts[1] and len(texts[0]) == 27
    by_question = [{texts[0][f"{n}:{each.id}"] for n in (1, 2, 3)} for each in task.items]
    assert any(len(different) > 1 for different in by_question)
