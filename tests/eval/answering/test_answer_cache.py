"""Evaluations without an output folder keep their answers in the cache folder."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

import vlpress
from vlpress.common.output_dir import sole_use
from vlpress.eval.answering import answer_cache, runner
from vlpress.eval.answering.answer_cache import (
    MAX_DAYS,
    cache_folder,
    cache_root,
    prune_cache,
)
from vlpress.eval.config import EvaluateOptions

OPTIONS: dict[str, Any] = {
    "bench": "builtin-ocrbench",
    "limit": 4,
    "batch_size": 4,
    "device": "cpu",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLPRESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_variables_choose_the_cache_folder(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_root() == cache
    monkeypatch.delenv("VLPRESS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_root() == Path("/x/vlpress")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path.home() / ".cache" / "vlpress"


@pytest.mark.usefixtures("short_answers")
def test_the_same_call_resumes_and_another_limit_extends(
    checkpoint: Path, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    vlpress.evaluate(checkpoint, **OPTIONS, progress=True)
    (folder,) = (cache / "eval").iterdir()
    assert folder.name.startswith(checkpoint.name)
    assert f"answers are kept in {folder}" in capfd.readouterr().err
    first = (folder / "builtin-ocrbench" / "predictions.jsonl").read_bytes()
    scores = vlpress.evaluate(checkpoint, **{**OPTIONS, "limit": 5})
    assert scores["benchmarks"]["builtin-ocrbench"]["n"] == 5
    second = (folder / "builtin-ocrbench" / "predictions.jsonl").read_bytes()
    assert second.startswith(first)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_answer", None)  # nothing is asked again
        assert vlpress.evaluate(checkpoint, **OPTIONS)["benchmarks"]["builtin-ocrbench"]["n"] == 4
    vlpress.evaluate(checkpoint, **OPTIONS, no_cache=True)
    assert list((cache / "eval").iterdir()) == [folder]


def test_folders_differ_by_model_and_options(checkpoint: Path, tmp_path: Path) -> None:
    def folder(**changes: Any) -> Path:
        return cache_folder(EvaluateOptions(checkpoint, **{**OPTIONS, **changes}))

    first = folder()
    assert folder() == folder(limit=9) == folder(threads=2) == first
    others = [folder(batch_size=3), folder(bench="builtin-mmmu"), folder(blank_images=True)]
    others.append(cache_folder(EvaluateOptions("tiny", **OPTIONS)))
    assert len({first, *others}) == 5
    path = tmp_path / "own.csv"
    path.write_text("question,answer\nWhat?,x\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert folder(bench="own=own.csv") == folder(bench=f"own={path}")


def test_old_and_excess_folders_are_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    days = {"a": 0.0, "b": 1.0, "c": 2.0, "d": MAX_DAYS + 1.0, "busy": MAX_DAYS + 2.0}
    for name, age in days.items():
        folder = cache / "eval" / name
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(b"x" * 100)
        os.utime(folder, (time.time() - age * 86400,) * 2)
    monkeypatch.setattr(answer_cache, "MAX_BYTES", 250)
    with sole_use(cache / "eval" / "busy"):
        removed = prune_cache(cache / "eval" / "new")
    assert {path.name for path in removed} == {"c", "d"}
    assert {path.name for path in (cache / "eval").iterdir() if path.is_dir()} == {
        "a",
        "b",
        "busy",
        "new",
    }
