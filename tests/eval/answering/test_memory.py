"""Peak memory of two models in alternation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from eval_files import package_files

from vlpress.eval.answering.memory import (
    MEMORY_BATCHES,
    ProcessMeter,
    find_meter,
    measure_memory,
)
from vlpress.eval.answering.throughput import choose_batches
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.task import Item

MIB = 2**20


class FakeMeter:
    """Memory that answers raise by given amounts."""

    kind = "memory of a test"

    def __init__(self) -> None:
        self.level, self.highest = 100, 0

    def used(self) -> int:
        return self.level

    def reset(self) -> None:
        self.highest = self.level

    def peak(self) -> int:
        return self.highest

    def answering(self, name: str, log: list[tuple[str, list[str]]], *rises: int) -> Any:
        remaining = list(rises)

        def answer(items: Sequence[Item]) -> None:
            log.append((name, [item.id for item in items]))
            self.highest = self.level + remaining.pop(0)

        return answer


@pytest.fixture
def batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[Item]]:
    package_files(tmp_path, monkeypatch)
    return choose_batches([open_task("builtin-mmbench")], 3)


def test_models_take_turns_and_the_largest_rise_counts(batches: list[list[Item]]) -> None:
    meter, log = FakeMeter(), []  # type: ignore[var-annotated]
    found = measure_memory(
        meter,
        {"base": 1000, "candidate": 300},
        meter.answering("base", log, 20, 50),
        meter.answering("candidate", log, 100, 40),
        batches,
    )
    assert [name for name, _ in log] == ["base", "candidate", "candidate", "base"]
    assert [ids for _, ids in log][::2] == [ids for _, ids in log][1::2]
    assert found["base"] == {"resident_bytes": 1000, "rise_bytes": 50, "peak_bytes": 1050}
    assert found["candidate"] == {"resident_bytes": 300, "rise_bytes": 100, "peak_bytes": 400}
    assert found["ratio"] == pytest.approx(400 / 1050)
    assert (found["batches"], found["batch_size"]) == (MEMORY_BATCHES, len(batches[0]))
    assert found["kind"] == "memory of a test"


def test_the_process_meter_sees_memory_that_was_freed_again() -> None:
    meter = find_meter(torch.device("cpu"))
    if not isinstance(meter, ProcessMeter):
        pytest.skip("this system cannot reset the peak of a process")
    for size in (64, 16):  # a lower peak after a higher one
        before = meter.used()
        meter.reset()
        torch.ones(size * MIB, dtype=torch.uint8)
        rise = meter.peak() - before
        assert 0.9 * size * MIB <= rise < 2 * size * MIB
