"""The verb `pixels` on a small random model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_run import QUESTIONS
from typer.testing import CliRunner

from vlpress.cli import main
from vlpress.eval.pixels.run import pixels
from vlpress.eval.report.budgets import render_budgets, summarize_budgets
from vlpress.eval.results import read_run

pytestmark = pytest.mark.usefixtures("short_answers")
FILES = ("pixels.json", "pixels.md", "pixels.html", "timing.json")


def options_for(checkpoint: Path, out: Path, **changes: Any) -> dict[str, Any]:
    options = {"model": checkpoint, "out": out, "device": "cpu", "budgets": "9"}
    return {**options, **QUESTIONS, **changes}


@pytest.fixture(scope="module")
def finished(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished call; its budget 16 changes no image."""
    out = tmp_path_factory.mktemp("pixels") / "out"
    pixels(**options_for(checkpoint, out, budgets="9,16"))
    return out


@pytest.fixture
def result(finished: Path) -> dict[str, Any]:
    return dict(json.loads((finished / "pixels.json").read_text("utf-8")))


def test_the_result_has_the_numbers_of_the_evaluations_and_reports(
    finished: Path, result: dict[str, Any]
) -> None:
    [row] = result["budgets"]
    report = json.loads((finished / "report" / "9" / "report.json").read_text("utf-8"))
    entry, reported = (
        row["benchmarks"]["builtin-ocrbench"],
        report["benchmarks"]["builtin-ocrbench"],
    )
    shared = ("n", "base", "candidate", "delta", "ci95", "verdict", "lower95")
    assert {key: entry[key] for key in shared} == {key: reported[key] for key in shared}
    assert row["verdict"] == report["verdict"] and row["kl_mean"] == report["fidelity"]["kl_mean"]
    assert row["kl_mean"] > 0
    assert (entry["affected"], entry["images"], entry["visual_tokens"]) == (6, 6, 9.0)
    assert result["base"]["benchmarks"]["builtin-ocrbench"]["visual_tokens"] == 16.0
    areas = [
        read_run(finished / "eval" / name).fingerprint["pixels"]["max"] for name in ("base", "9")
    ]
    assert areas == [result["base"]["max_pixels"], row["max_pixels"]] == [16 * 784, 9 * 784]
    assert result["without_effect"] == [16] and not (finished / "eval" / "16").exists()
    assert result["smallest"]["all"] is None and result["verdict"] == row["verdict"] != "PASS"
    assert report["command"] == result["command"]


def test_times_are_measured_in_alternation(finished: Path, result: dict[str, Any]) -> None:
    [row] = result["budgets"]
    assert result["timing"]["questions"] == 6
    for kind in ("vision_seconds", "prefill_seconds", "first_token_seconds"):
        seconds = row["seconds"][kind]
        assert min(seconds["base"], seconds["candidate"]) > 0
        low, high = seconds["spread"]
        assert low <= seconds["ratio"] <= high
    report = json.loads((finished / "report" / "9" / "report.json").read_text("utf-8"))
    assert report["speed"]["alternating"]["questions"] == 6


def test_texts_name_model_choice_and_budgets_without_effect(
    finished: Path, result: dict[str, Any]
) -> None:
    markdown, console = render_budgets(result), summarize_budgets(result)
    assert (finished / "pixels.md").read_text("utf-8") == markdown
    page = (finished / "pixels.html").read_text("utf-8")
    for text in (markdown, console, page):
        assert "change no image: budgets 16" in text and "No measured budget" in text
        assert "builtin-ocrbench" in text
    assert page.count("<svg") == 3 and 'href="report/9/report.html"' in page
    rows = [line for line in markdown.splitlines() if "builtin-ocrbench" in line and "|" in line]
    assert "| own" in rows[0].replace("      ", " ") and "6 of 6" in rows[1]


def test_a_repeated_call_loads_no_model_and_changes_nothing(
    checkpoint: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    before = {name: (out / name).read_bytes() for name in FILES}
    monkeypatch.setattr("vlpress.quant.resolve.Source.load", None)
    again = pixels(**options_for(checkpoint, out, budgets="16,9"))
    written = json.loads(before["pixels.json"])
    changed = {key for key in again if again[key] != written[key]}
    assert changed == {"command"}  # the folder and the order of the budgets
    assert (out / "timing.json").read_bytes() == before["timing.json"]


def test_a_further_budget_asks_only_what_is_new(
    checkpoint: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    stored = {
        path: path.read_bytes()
        for path in (out / "eval").rglob("*.jsonl")
        if path.name in ("predictions.jsonl", "fidelity.jsonl")
    }
    assert len(stored) == 3
    result = pixels(**options_for(checkpoint, out, budgets=[9, 4]))
    assert all(path.read_bytes() == data for path, data in stored.items())
    assert [row["budget"] for row in result["budgets"]] == [9, 4]
    assert result["budgets"][1]["visual_tokens"] == 4.0
    assert set(result["budgets"][1]["seconds"]["prefill_seconds"]) >= {"ratio", "spread"}


def test_further_questions_extend_all_budgets(
    checkpoint: Path, finished: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    files = [
        out / "eval" / name / "builtin-ocrbench" / "predictions.jsonl" for name in ("base", "9")
    ]
    before = [path.read_bytes() for path in files]
    result = pixels(**options_for(checkpoint, out, limit=8))
    assert all(path.read_bytes().startswith(old) for path, old in zip(files, before, strict=True))
    assert result["budgets"][0]["benchmarks"]["builtin-ocrbench"]["n"] == 8


def test_other_settings_are_refused(checkpoint: Path, finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished, out)
    with pytest.raises(ValueError, match="batch_size: 2 -> 3"):
        pixels(**options_for(checkpoint, out, batch_size=3))


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ("3", "--budgets 3: .*allows 4 to 16 visual tokens per image"),
        ("17", "--budgets 17: .*allows 4 to 16 visual tokens per image"),
        ("16", "--budgets 16: change no image of builtin-ocrbench, .*16 visual tokens"),
    ],
)
def test_unusable_budgets_are_refused_before_a_model_is_loaded(
    checkpoint: Path, tmp_path: Path, budgets: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        pixels(**options_for(checkpoint, tmp_path / "out", budgets=budgets))
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_over_other_folders_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for target, role in ((checkpoint, "the source"), (tmp_path, "the output"), (out, "the output")):
        with pytest.raises(ValueError, match=f"is or holds {role}"):
            pixels(**options_for(checkpoint, out, write=target))
    assert not out.exists()


def test_nothing_is_written_without_a_budget_that_passes(
    checkpoint: Path, finished: Path, tmp_path: Path
) -> None:
    out, target = tmp_path / "out", tmp_path / "candidate"
    shutil.copytree(finished, out)
    words = ["pixels", str(checkpoint), "-o", str(out), "--budgets", "9", "--device", "cpu"]
    words += ["--bench", "builtin-ocrbench", "--limit", "6", "--batch-size", "2"]
    done = CliRunner().invoke(main.app, [*words, "--write", str(target)])
    assert done.exit_code in (1, 4), done.stderr
    assert "is not written" in done.stderr and not target.exists()
    refused = CliRunner().invoke(main.app, [*words[:-2], "--budgets", "nine"])
    assert refused.exit_code == 2 and "'nine'" in refused.stderr


def test_the_chosen_budget_is_written_into_the_preprocessor(
    checkpoint: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint's own evaluation is then that of the budget."""
    out, target = tmp_path / "out", tmp_path / "candidate"
    shutil.copytree(finished, out)
    monkeypatch.setattr("vlpress.eval.pixels.summary.choose_budget", max)
    result = pixels(**options_for(checkpoint, out, write=target))
    assert result["written"] == str(target)
    settings = json.loads((target / "preprocessor_config.json").read_text())
    assert settings["max_pixels"] == 9 * 784
    marker = (target / "work.json").read_bytes()
    from vlpress.eval.api import evaluate

    evaluate(target, tmp_path / "again", device="cpu", **QUESTIONS)
    again, measured = read_run(tmp_path / "again"), read_run(out / "eval" / "9")
    assert again.fingerprint == measured.fingerprint
    answers = [
        {key: p.prediction for key, p in run.tasks["builtin-ocrbench"].predictions.items()}
        for run in (again, measured)
    ]
    assert answers[0] == answers[1] and len(answers[0]) == 6
    assert pixels(**options_for(checkpoint, out, write=target))["written"] == str(target)
    assert (target / "work.json").read_bytes() == marker


@pytest.mark.slow
def test_a_trained_model_passes_or_fails_by_its_answers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"bench": "builtin-ocrbench", "limit": 120, "budgets": "4,9"}
    strict = pixels("tiny", tmp_path / "out", device="cpu", **options)
    four = strict["budgets"][-1]["benchmarks"]["builtin-ocrbench"]
    assert four["delta"] < -20 and four["verdict"] == "FAIL" and strict["smallest"]["all"] is None
    lenient = pixels(
        "tiny", tmp_path / "out", device="cpu", margin=99, write=tmp_path / "small", **options
    )
    nine = lenient["budgets"][0]
    assert lenient["smallest"]["all"] in (4, 9) and nine["verdict"] == "PASS"
    assert (tmp_path / "small" / "model.safetensors").is_file()
