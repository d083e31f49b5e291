"""Timing of both models of a finished run in alternation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_run import QUESTIONS, copy_run

from vlpress.common.progress import silent
from vlpress.eval.answering.memory import find_meter
from vlpress.eval.api import evaluate
from vlpress.eval.config import QuestionOptions
from vlpress.eval.report.sections.speed import FILE, read_throughput
from vlpress.eval.resolve import open_tasks
from vlpress.eval.results import read_run
from vlpress.eval.speed_comparison import time_in_alternation
from vlpress.quant.config import ModelSettings
from vlpress.quant.resolve import Source

pytestmark = pytest.mark.usefixtures("short_answers")


@pytest.fixture(scope="module")
def finished(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_run(finished_run, tmp_path_factory.mktemp("timing") / "out")


@pytest.fixture
def untimed(finished: Path, tmp_path: Path) -> Path:
    """The same run without its throughput."""
    out = copy_run(finished, tmp_path / "out")
    (out / "eval" / "candidate" / FILE).unlink()
    return out


def measure(checkpoint: Path, out: Path) -> dict[str, object]:
    settings = ModelSettings(device="cpu")
    original = Source.find(checkpoint, settings)
    quantized = Source.find(out / "checkpoint", settings)
    folders = out / "eval" / "base", out / "eval" / "candidate"
    time_in_alternation(
        *folders,
        open_tasks(QuestionOptions(**QUESTIONS), original, original.processor()),
        original,
        quantized,
        batch_size=2,
        reporter=silent(),
    )
    return read_throughput(*map(read_run, folders))


def test_a_run_times_both_models_on_the_same_questions(finished: Path) -> None:
    report = json.loads((finished / "report" / "report.json").read_text())
    speed = report["speed"]["alternating"]
    assert speed["questions"] == speed["batches"] * speed["batch_size"] == 6
    for rate in ("items", "prefill_tokens", "decode_tokens"):
        assert speed[f"{rate}_per_second"]["base"] > 0
        low, high = speed[f"{rate}_per_second"]["spread"]
        assert 0 < low <= speed[f"{rate}_per_second"]["ratio"] <= high
    if find_meter(torch.device("cpu")):  # not on every system
        memory = report["memory"]["alternating"]
        assert memory["batch_size"] == speed["batch_size"]
        for side in ("base", "candidate"):
            parts = memory[side]["resident_bytes"], memory[side]["rise_bytes"]
            # A small model may fit into memory that the process has already.
            assert 0 <= memory[side]["peak_bytes"] == sum(parts)


def test_stored_rates_are_kept(checkpoint: Path, finished: Path) -> None:
    path = finished / "eval" / "candidate" / FILE
    before = path.read_bytes()
    measure(checkpoint, finished)
    assert path.read_bytes() == before


def test_two_models_that_do_not_fit_into_memory_are_not_loaded(
    checkpoint: Path, untimed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(available=100 * 2**10)
    monkeypatch.setattr("vlpress.eval.speed_comparison.psutil.virtual_memory", lambda: free)
    monkeypatch.delattr(Source, "load")
    throughput = measure(checkpoint, untimed)
    assert throughput["rates"] is None and "100.0 KiB" in str(throughput["reason"])


def test_models_on_other_kernels_than_in_the_evaluation_are_not_timed(
    checkpoint: Path, untimed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLPRESS_KERNEL", "reference")
    throughput = measure(checkpoint, untimed)
    assert throughput["rates"] is None and "kernels" in str(throughput["reason"])


def test_an_evaluation_against_a_reference_times_both(
    checkpoint: Path, finished: Path, tmp_path: Path
) -> None:
    base = finished / "eval" / "base"
    again = tmp_path / "again"
    evaluate(finished / "checkpoint", again, **QUESTIONS, device="cpu", reference=base)
    throughput = read_throughput(read_run(base), read_run(again))
    assert throughput["rates"]["items_per_second"]["ratio"] > 0
