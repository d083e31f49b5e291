from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from workbench import Workbench

from vlpress.eval import compare
from vlpress.eval.report.sections.speed import (
    FILE,
    NOT_MEASURED,
    read_throughput,
    speed_notes,
    speed_rows,
    speed_section,
    write_throughput,
)
from vlpress.eval.results import read_run

LOAD = {
    "began": "2026-11-29T10:00:00+00:00",
    "ended": "2026-11-29T10:01:00+00:00",
    "seconds": 60.0,
    "cores": 2,
    "threads": 2,
    "own_cores": 1.0,
    "other_cores": 0.9,
}


def rate(base: float, candidate: float) -> dict[str, Any]:
    return {"base": base, "candidate": candidate, "ratio": 0.25, "spread": [0.2, 0.375]}


RATES = {
    "batches": 5,
    "batch_size": 4,
    "questions": 20,
    "load": LOAD,
    "items_per_second": rate(80.0, 20.0),
    "prefill_tokens_per_second": rate(4000.0, 1000.0),
    "decode_tokens_per_second": rate(400.0, 100.0),
}


@pytest.fixture
def runs(bench: Workbench) -> tuple[Path, Path]:
    names = ("builtin-ocrbench",)
    return bench.run("base", names=names), bench.run("candidate", names=names, seed=1)


def test_without_alternation_rates_stand_apart_and_no_ratio_is_given(
    runs: tuple[Path, Path],
) -> None:
    section = speed_section(*map(read_run, runs))
    assert section["alternating"] is None and section["note"] == NOT_MEASURED
    assert [row.ratio for row in speed_rows(section)] == [None, None]
    assert section["base"]["items_per_second"] > 0
    for side in ("base", "candidate"):
        assert section[side]["load"]["cores"] >= 1 and section[side]["load"]["seconds"] > 0
    notes = speed_notes(section)
    assert any(str(section["base"]["load"]["began"])[:10] in note for note in notes)


def test_alternating_rates_reach_every_report_with_ratio_and_load(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    write_throughput(*runs, rates=RATES)
    report = compare(*runs, tmp_path / "report")
    assert report["speed"]["alternating"] == RATES and report["speed"]["note"] == ""
    for name in ("report.md", "report.html"):
        text = (tmp_path / "report" / name).read_text()
        assert all(part in text for part in ("0.25", "0.20 to 0.38", "80.0", "20 questions"))
        assert "2026-11-29 10:00 to 10:01" in text and "BUSY" in text


def test_throughput_of_another_model_is_not_shown(
    runs: tuple[Path, Path], bench: Workbench
) -> None:
    write_throughput(*runs, rates=RATES)
    base, candidate = map(read_run, runs)
    assert read_throughput(base, candidate)["rates"] == RATES
    fingerprint = {**base.fingerprint, "kernels": {"other": 1}}
    other = type(base)(base.path, {**base.info, "fingerprint": fingerprint}, base.tasks)
    assert read_throughput(other, candidate) == {}


def test_the_reason_for_missing_throughput_is_shown(runs: tuple[Path, Path]) -> None:
    write_throughput(*runs, reason="not measured in alternation: 3.0 GiB are free")
    section = speed_section(*map(read_run, runs))
    assert section["alternating"] is None
    assert any("3.0 GiB" in note for note in speed_notes(section))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"of": 1'])
def test_damaged_throughput_is_refused_by_name(runs: tuple[Path, Path], text: str) -> None:
    (runs[1] / FILE).write_text(text)
    with pytest.raises(ValueError, match=FILE):
        read_throughput(*map(read_run, runs))


def test_a_resumed_evaluation_keeps_the_load_under_which_it_was_answered(
    runs: tuple[Path, Path], bench: Workbench
) -> None:
    before = json.loads((runs[0] / "run.json").read_text())["load"]
    bench.run("base", names=("builtin-ocrbench",))
    assert json.loads((runs[0] / "run.json").read_text())["load"] == before
