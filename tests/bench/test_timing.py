"""Timing of layers and models."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from vlpress.bench import kernel_speed, model_speed, timing
from vlpress.model.loading import load_model
from vlpress.quant.kernels import library

NEEDS = pytest.mark.skipif(
    isinstance(library.find_kernels("portable"), str), reason="the kernels are not built"
)


class FakeClock:
    """A clock that only advances when a test says so."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def perf_counter(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few short turns: these tests do not check how precise the times are."""
    monkeypatch.setattr(timing, "ROUNDS", 3)
    monkeypatch.setattr(timing, "BUDGET", 0.01)
    monkeypatch.setattr(timing, "COPIES_BYTES", 2**20)


def test_copies_exceed_every_cache() -> None:
    size = 11 * 2**20
    assert timing.copies_of(size) * size >= timing.COPIES_BYTES
    assert timing.copies_of(2**40) == 2


def test_calls_of_a_turn_fill_its_budget_and_use_the_copies_in_turn(clock: FakeClock) -> None:
    used: list[int] = []

    def slow(copy: int) -> None:
        used.append(copy)
        clock.advance(0.004)

    copies = [partial(slow, copy) for copy in range(3)]
    seconds = timing.time_in_turns({"fast": [partial(clock.advance, 0.001)], "slow": copies})
    assert seconds == {"fast": pytest.approx(0.001), "slow": pytest.approx(0.004)}
    # Three calls exceed the budget of 0.01 s, in one turn that warms up and three that count.
    assert used == [0, 1, 2] * 4


def test_seconds_are_the_median_without_the_first_turn(clock: FakeClock) -> None:
    durations = iter([9.0, 0.5, 0.1, 0.3])
    seconds = timing.time_in_turns({"layer": [lambda: clock.advance(next(durations))]})
    assert seconds == {"layer": pytest.approx(0.3)}


def test_bandwidth_is_bytes_per_second(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "read_memory", lambda memory: clock.advance(0.5))
    assert timing.read_bandwidth() == pytest.approx(2 * timing.COPIES_BYTES)


@NEEDS
def test_memory_is_read() -> None:
    memory = torch.arange(1, 17, dtype=torch.int64)
    assert library.read_memory(memory) == 136


@NEEDS
def test_every_kind_of_layer_computes_the_same_product() -> None:
    report = kernel_speed.measure([(256, 192)], [1, 17])
    kinds = {row["kind"] for row in report["rows"]}
    assert kinds == {
        *("torch bf16", "torch float32", "torch int4pack", "torch int8"),
        *("w4a16", "w4a16-asym", "w8a16", "w8a8", "w4a8"),
        *("fp8", "fp8-block", "nvfp4", "mxfp4"),
    }
    assert len(report["rows"]) == 2 * len(kinds)
    for row in report["rows"]:
        assert row["seconds"] > 0 and row["error"] < 0.2
        share = row["bytes"] / row["seconds"] / row["bandwidth"]
        assert row["bandwidth_share"] == pytest.approx(share)


@NEEDS
def test_a_wrong_layer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = kernel_speed.Kind(
        "w8a8", 1.0, torch.Tensor.bfloat16, lambda weight: lambda x: x @ weight.t() * 2
    )
    monkeypatch.setattr(kernel_speed, "_kinds", lambda: [wrong])
    with pytest.raises(ValueError, match=r"w8a8 of 256 x 192 at 1 rows.* 1\.0.*0\.05"):
        kernel_speed.measure([(256, 192)], [1])


@NEEDS
def test_model_speed_of_the_built_in_model() -> None:
    model = load_model("tiny", device="cpu", dtype="bf16")
    report = model_speed.measure(model, prompt_tokens=20, new_tokens=4, rounds=2)
    assert report["prefill_rate"] == pytest.approx(20 / report["prefill_seconds"])
    assert report["token_rate"] == pytest.approx(1 / report["token_seconds"])
    assert report["kernels"] == {} and report["dtype"] == "bfloat16"
    with pytest.raises(ValueError, match=r"new_tokens 1: .* 2"):
        model_speed.measure(model, new_tokens=1)
