"""Timing of layers and models."""

from __future__ import annotations

import time
from functools import partial

import pytest
import torch

from vlpress.bench import kernel_speed, model_speed, timing
from vlpress.model.loading import load_model
from vlpress.quant.kernels import library

NEEDS = pytest.mark.skipif(
    isinstance(library.find_kernels("portable"), str), reason="the kernels are not built"
)


def test_no_cache_holds_all_copies() -> None:
    size = 11 * 2**20
    assert timing.copies_of(size) * size >= timing.COPIES_BYTES
    assert timing.copies_of(2**40) == 2


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here is not how steady the numbers are."""
    monkeypatch.setattr(timing, "ROUNDS", 3)
    monkeypatch.setattr(timing, "BUDGET", 0.01)
    monkeypatch.setattr(timing, "COPIES_BYTES", 2**20)


def test_calls_are_timed_and_copies_taken_in_turn() -> None:
    taken: list[int] = []

    def slow(number: int) -> None:
        taken.append(number)
        time.sleep(0.004)

    copies = [partial(slow, number) for number in range(3)]
    found = timing.time_in_turns({"fast": [lambda: time.sleep(0.001)], "slow": copies})
    assert found["slow"] >= 0.004 and found["fast"] >= 0.001
    assert taken == [i % 3 for i in range(len(taken))] and len(taken) > 3


@NEEDS
def test_bandwidth_is_that_of_reading() -> None:
    assert timing.read_bandwidth() > 1e8
    memory = torch.arange(1, 17, dtype=torch.int64)
    assert library.read_memory(memory) == 136


@NEEDS
def test_every_kind_of_layer_computes_the_same_product() -> None:
    found = kernel_speed.measure([(256, 192)], [1, 17])
    kinds = {row["kind"] for row in found["rows"]}
    assert kinds == {
        *("torch bf16", "torch int4pack", "torch int8"),
        *("w4a16", "w4a16-asym", "w8a16", "w8a8", "w4a8"),
    }
    assert len(found["rows"]) == 2 * len(kinds)
    for row in found["rows"]:
        assert row["seconds"] > 0 and row["error"] < 0.2
        share = row["bytes"] / row["seconds"] / row["bandwidth"]
        assert row["bandwidth_share"] == pytest.approx(share)


@NEEDS
def test_a_wrong_layer_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = kernel_speed.Kind(
        "w8a8", 1.0, torch.Tensor.bfloat16, lambda weight: lambda x: x @ weight.t() * 2
    )
    monkeypatch.setattr(kernel_speed, "_kinds", lambda: [wrong])
    with pytest.raises(ValueError, match=r"w8a8 of 256 x 192 at 1 rows is off by 1\.0"):
        kernel_speed.measure([(256, 192)], [1])


@NEEDS
def test_a_model_is_timed_as_it_generates() -> None:
    model = load_model("tiny", device="cpu", dtype="bf16")
    found = model_speed.measure(model, prompt_tokens=20, new_tokens=4, rounds=2)
    assert found["prefill_rate"] == pytest.approx(20 / found["prefill_seconds"])
    assert found["token_rate"] == pytest.approx(1 / found["token_seconds"])
    assert found["kernels"] == {} and found["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match="new_tokens 1: must be at least 2"):
        model_speed.measure(model, new_tokens=1)
