"""Planning and resuming of the study on a published model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import real_model
from common.preset_table import preset_table
from common.published_forms import write_published_forms
from common.stopwatch import Elapsed, Stopwatch

import vlpress
from vlpress.eval.tasks import open_task
from vlpress.quant.recipe.presets import PRESETS


def study(work: Path, *arguments: str) -> real_model.Study:
    _, options = real_model.parse(["--dry-run", "--work", str(work), *arguments])
    return real_model.Study(options)


def test_a_dry_run_chooses_model_files_and_small_numbers(tmp_path: Path) -> None:
    options = study(tmp_path).options
    chosen = options.model, options.data_root, options.limit, options.calib_samples, options.out
    assert chosen == ("tiny", tmp_path / "data", 4, 4, tmp_path)
    assert options.presets == list(PRESETS)
    assert options.benchmarks == ["MMBench_DEV_EN", "OCRBench", "MMMU_DEV_VAL", "DocVQA_VAL"]
    assert study(tmp_path, "--limit", "9").options.limit == 9


def test_a_real_run_asks_all_questions_in_the_pixel_budget_of_published_scores() -> None:
    _, options = real_model.parse(["org/Name-3B", "--data-root", "d"])
    assert (options.limit, options.pixels, options.noise) == (None, "vlmevalkit", 32)
    assert options.work == Path("out/real_model/Name-3B")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--data-root"),
        (["org/Name"], "--data-root"),
        (["org/Name", "--dry-run"], "MODEL"),
    ],
)
def test_incomplete_command_lines_exit_with_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        real_model.parse(arguments)
    assert error.value.code == 2 and named in capsys.readouterr().err


def test_missing_benchmark_files_exit_with_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["real_model.py", "tiny", "--data-root", str(tmp_path), "--work", str(tmp_path / "w")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as error:
        real_model.main()
    assert error.value.code == 2 and "MMBench_DEV_EN.tsv" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_presets_that_do_not_fit_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def plan(model: str, *, recipe: str, **options: Any) -> dict[str, Any]:
        if recipe == "w4a8":
            raise ValueError("no such kernel")
        return {"estimate": {"seconds": 240.0}}

    monkeypatch.setattr(vlpress, "plan", plan)
    assert study(tmp_path, "--presets", "w4a16", "w4a8").plan() == {"w4a8": "no such kernel"}
    assert "w4a16: about 4 min" in capsys.readouterr().out
    with pytest.raises(ValueError, match="w4a8: no such kernel"):
        study(tmp_path, "--presets", "w4a8").run()
    assert not (tmp_path / "base").exists()


def test_a_work_folder_of_other_options_is_refused(tmp_path: Path) -> None:
    study(tmp_path).claim()
    study(tmp_path, "--presets", "w4a16").claim()
    with pytest.raises(ValueError, match=r"limit: 4, now 8"):
        study(tmp_path, "--limit", "8").claim()


def test_time_is_summed_over_sessions_and_a_killed_one_is_noticed(tmp_path: Path) -> None:
    watch = Stopwatch(tmp_path / "s.jsonl")
    with pytest.raises(KeyError), watch.session("quantize"):
        raise KeyError
    with watch.session("quantize"), watch.session("evaluate"):
        pass
    assert watch.elapsed("quantize").is_complete
    assert watch.elapsed("compare") == Elapsed(0, True)
    lines = (tmp_path / "s.jsonl").read_text("utf-8").splitlines(keepends=True)
    (tmp_path / "s.jsonl").write_text("".join(lines[:-1]), "utf-8")
    assert not watch.elapsed("quantize").is_complete
    assert watch.elapsed("evaluate").is_complete


def test_built_in_files_in_published_form(tmp_path: Path) -> None:
    write_published_forms(tmp_path)
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(real_model.BENCHMARKS)
    task = open_task("DocVQA_VAL", data_root=tmp_path, limit=2)
    assert task.score({f["id"]: f["answers"][0] for f in task.fields}).percent == 100.0


def test_the_table_marks_lower_bounds_of_times_and_dry_runs() -> None:
    score = {"candidate": 70.0, "ci95": [-2.5, 0.5], "verdict": "INCONCLUSIVE"}
    whole, part = ({"seconds": 7200.0, "is_complete": done} for done in (True, False))
    row = {
        "preset": "w4a16",
        "bits_per_weight": 4.7,
        "bytes": 3 * 2**30,
        "benchmarks": {"DocVQA_VAL": score},
        "fidelity": {"kl_mean": 0.0123, "top1_agreement": 0.987},
        "verdict": "INCONCLUSIVE",
        "seconds": {"quantize": whole, "evaluate": part},
    }
    entry = {"metric": "ANLS", "n": 5349, "score": 71.0}
    results = {
        "date": "2026-11-29",
        "commit": "abc",
        "machine": {"processor": "P", "threads": 1},
        "versions": {"torch": "2"},
        "model": "org/Name",
        "dry_run": False,
        "settings": {"limit": None, "pixels": "vlmevalkit", "margin": 2.0, "calib": "c.jsonl"},
        "base": {
            "bytes": 2**30,
            "seconds": {"evaluate": whole},
            "benchmarks": {"DocVQA_VAL": entry},
        },
        "rows": [row],
        "refused": {"w4a8": "no such kernel"},
    }
    table = preset_table(results)
    assert "70.00 [-2.50, +0.50] INCONCLUSIVE" in table
    assert "| 2.0 h " in table and "| 2.0 h + " in table
    assert "- w4a8: no such kernel" in table and "Dry run" not in table
    assert "Dry run" in preset_table({**results, "dry_run": True})


@pytest.mark.slow
def test_a_dry_run_resumes_without_repeating_a_preset_or_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--presets", "w8a16-rtn", "w4a16-rtn", "--limit", "2", "--threads", "1")
    write_published_forms(tmp_path / "data")
    compare = vlpress.compare
    compared: list[str] = []

    def stop_at_the_second(base: Path, candidate: Path, out: Path, **options: Any) -> Any:
        if compared:
            raise KeyboardInterrupt
        compared.append(candidate.parent.name)
        return compare(base, candidate, out, **options)

    monkeypatch.setattr(vlpress, "compare", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, *arguments).run()
    assert compared == ["w8a16-rtn"]
    answers = {path: path.read_bytes() for path in tmp_path.rglob("predictions.jsonl")}
    assert len(answers) == 3 * len(real_model.BENCHMARKS)
    rows = json.loads((tmp_path / "real_model_dry_run.json").read_text("utf-8"))["rows"]
    assert [row["preset"] for row in rows] == ["w8a16-rtn"]

    monkeypatch.setattr(vlpress, "compare", compare)
    quantize, quantized = vlpress.quantize, list[str]()

    def count(model: str, out: Path, **options: Any) -> Any:
        quantized.append(out.parent.name)
        return quantize(model, out, **options)

    monkeypatch.setattr(vlpress, "quantize", count)
    results = study(tmp_path, *arguments).run()
    assert quantized == ["w4a16-rtn"]
    assert {path: path.read_bytes() for path in answers} == answers
    assert [row["preset"] for row in results["rows"]] == ["w8a16-rtn", "w4a16-rtn"]
    bits = [row["bits_per_weight"] for row in results["rows"]]
    assert bits[0] > bits[1]
    assert not list(tmp_path.rglob("checkpoint"))
    for row in results["rows"]:
        assert set(row["benchmarks"]) == set(real_model.BENCHMARKS)
        assert row["fidelity"]["kl_mean"] >= 0
