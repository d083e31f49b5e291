"""Rows of engines in the result files of `make interop`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import run
from answering_engines.comparison import Difference
from answering_engines.jobs import AnswerRow

HEADER = {
    "date": "2026-01-02",
    "commit": "abc",
    "machine": {"processor": "P", "threads": 1, "gpu": False},
    "versions": {"torch": "2"},
}


def answer_row(**changed: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "engine": "vLLM",
        "version": "1",
        "model": "tiny",
        "format": "gptq",
        "recipe": "w4a16",
        "dtype": "float32",
        "kernels": "20 K",
        "questions": 68,
        "same_answers": 67,
        "same_prompt_lengths": 68,
        "difference": Difference(0.00021, 0.00001),
        "bound": Difference(0.0001, 0.00002),
        "result": "differs",
        "passed": False,
    }
    return asdict(AnswerRow(**(values | changed)))


def test_table_shows_counts_and_differences() -> None:
    line = run.answer_table([answer_row()]).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[3:10] == [
        "gptq w4a16",
        "float32",
        "20 K",
        "67/68",
        "68/68",
        "2.1e-04, 1.0e-05",
        "1.0e-04, 2.0e-05",
    ]
    assert cells[-1] == "**FAILED**: differs"


def test_refused_checkpoint_has_no_counts() -> None:
    nothing = {"same_answers": 0, "same_prompt_lengths": 0, "difference": None, "bound": None}
    line = run.answer_table([answer_row(**nothing, passed=True)]).splitlines()[-1]
    assert "0/68" not in line


def test_rows_of_other_engines_keep_their_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer: dict[str, Any] = {
        "engine": "auto-gptq",
        "version": "1",
        "format": "gptq",
        "compared": "scales",
    }
    layer |= {"result": "equal", "passed": True}
    run.write_results({"auto-gptq": {**HEADER, "commit": "old", "rows": [layer]}}, tmp_path)
    results = run.read_results(tmp_path / "interop.json")
    results["vLLM"] = {**HEADER, "rows": [answer_row()]}
    run.write_results(results, tmp_path)
    stored = json.loads((tmp_path / "interop.json").read_text(encoding="utf-8"))
    assert {name: entry["commit"] for name, entry in stored.items()} == {
        "auto-gptq": "old",
        "vLLM": "abc",
    }
    text = (tmp_path / "interop.md").read_text(encoding="utf-8")
    assert "commit old" in text and "commit abc" in text and "equal" in text


def test_folders_of_engines_differ_and_have_no_spaces() -> None:
    folders = [engine.folder for engine in run.ENGINES]
    assert len(set(folders)) == len(folders)
    assert not any(" " in folder for folder in folders)
