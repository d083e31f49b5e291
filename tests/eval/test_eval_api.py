"""The verbs `evaluate` and `compare` as functions."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import vlpress
from vlpress.common.output_dir import sole_use
from vlpress.eval.results import read_run

pytestmark = pytest.mark.usefixtures("short_answers")

OPTIONS: dict[str, Any] = {
    "bench": "builtin-ocrbench",
    "limit": 4,
    "batch_size": 2,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def base(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished evaluation of a small random model."""
    out = tmp_path_factory.mktemp("api") / "base"
    vlpress.evaluate(checkpoint, out, **OPTIONS)
    return out


def test_an_evaluation_is_quiet_and_resumes(
    checkpoint: Path, base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answers = (base / "builtin-ocrbench" / "predictions.jsonl").read_bytes()
    scores = vlpress.evaluate(checkpoint, base, **OPTIONS)
    assert scores["benchmarks"]["builtin-ocrbench"]["n"] == 4
    assert (base / "builtin-ocrbench" / "predictions.jsonl").read_bytes() == answers
    assert "evaluating builtin-ocrbench" not in "".join(capfd.readouterr())
    vlpress.evaluate(checkpoint, base, **OPTIONS, progress=True)
    shown = capfd.readouterr()
    assert "evaluating builtin-ocrbench: 4/4" in shown.err and not shown.out


def test_a_folder_in_use_is_refused(checkpoint: Path, base: Path) -> None:
    with sole_use(base), pytest.raises(ValueError, match="in use by another vlpress"):
        vlpress.evaluate(checkpoint, base, **OPTIONS)


def test_options_of_another_kind_of_model_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="neither given; give MODEL, or --endpoint"):
        vlpress.evaluate()
    with pytest.raises(ValueError, match="--model names a served model"):
        vlpress.evaluate(checkpoint, served_model="m")
    with pytest.raises(ValueError, match="not an endpoint"):
        vlpress.evaluate(endpoint="http://127.0.0.1:9", kv_cache="int8")


def test_one_or_several_candidates_are_compared(base: Path, tmp_path: Path) -> None:
    report = vlpress.compare(base, base, tmp_path / "one", margin=99)
    assert report["verdict"] == "INCONCLUSIVE" and report["margin"] == 99
    assert (tmp_path / "one" / "report.html").is_file()
    same = vlpress.compare(base, [base], tmp_path / "same", margin=99)
    assert same == report
    other = tmp_path / "other"
    shutil.copytree(base, other)
    comparison = vlpress.compare(base, [base, other], tmp_path / "several")
    assert len(comparison["candidates"]) == 2
    assert read_run(base).name in comparison["base"]
