"""Verdicts by MLPerf's rule, from the command line to all forms of the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from eval_models import right
from typer.testing import CliRunner
from workbench import NAMES, Workbench

from vlpress.cli import main
from vlpress.eval import compare, compare_many
from vlpress.eval.answering.sampling import Decoding
from vlpress.eval.report.card import scores_section
from vlpress.eval.report.report import build_report
from vlpress.eval.report.words.criterion_words import criterion_words
from vlpress.eval.results import read_run

pytestmark = pytest.mark.usefixtures("packaged")

OCR = NAMES[1]
TEN = Decoding(10, 0.7)
MLPERF: Any = {"criterion": "mlperf-99"}


def lossy(count: int) -> Any:
    """Wrong in the first samples of question 0: of 90 answers each is worth 1.11 points."""
    keys = {f"{n}:0" for n in range(1, count + 1)}
    return lambda item: "no idea" if item.key in keys else right(item)


def run(bench: Workbench, name: str, count: int, **options: Any) -> Path:
    return bench.run(name, lossy(count), names=[OCR], **{"decoding": TEN, **options})


@pytest.fixture
def base(bench: Workbench) -> Path:
    return run(bench, "base", 2)  # 88 of 90 answers


def test_the_share_decides_where_a_margin_does_not(bench: Workbench, base: Path) -> None:
    # 87 of 88 answers are 98.9 % of the base's.
    original = read_run(base)
    for count, verdict in ((2, "PASS"), (3, "FAIL")):
        candidate = read_run(run(bench, f"c{count}", count))
        report, _ = build_report(original, candidate, **MLPERF)
        assert (report["verdict"], report["criterion"]) == (verdict, "mlperf-99")
        assert report["margin"] is None
        entry = report["benchmarks"][OCR]
        assert entry["threshold"] == pytest.approx(0.99 * 100 * 88 / 90)
        assert entry["questions_still_needed"] is None
        assert build_report(original, candidate)[0]["verdict"] == "INCONCLUSIVE"


def test_all_forms_name_the_rule(bench: Workbench, base: Path) -> None:
    out = bench.folder / "report"
    report = compare(base, run(bench, "cand", 5), out, **MLPERF)
    [reason] = report["verdict_reasons"]
    assert "94.44 %" in reason and "96.80 %" in reason and "99 %" in reason
    assert f"below 99 % of the base's on {OCR}" in report["reason"]
    for name in ("report.md", "report.html"):
        text = (out / name).read_text("utf-8")
        assert "mlperf-99" in text and "at least 99 % of the" in text
        assert "points are lost" not in text and "The margin is" not in text
        assert "MLPerf's base is the mean" not in text  # ten runs as in MLPerf
        assert "without an interval" in text
    assert "--criterion mlperf-99" in report["command"] and "--margin" not in report["command"]
    assert "(criterion mlperf-99)" in scores_section(report)


def test_fewer_runs_than_mlperf_are_named(bench: Workbench) -> None:
    options: dict[str, Any] = {"names": [OCR]}
    base, candidate = bench.run("base", **options), bench.run("cand", **options)
    report = compare(base, candidate, bench.folder / "report", **MLPERF)
    assert report["verdict"] == "PASS"
    text = (bench.folder / "report" / "report.md").read_text("utf-8")
    assert "MLPerf's base is the mean of 10 runs, this one is of one greedy run" in text


def test_a_base_that_shows_nothing_supports_no_verdict(bench: Workbench) -> None:
    silent = bench.run("silent", lambda _: "", names=[OCR])
    report = compare(silent, silent, bench.folder / "report", **MLPERF)
    assert report["verdict"] == "INCONCLUSIVE"
    assert f"On {OCR}, 100.0 % of the base's answers are empty" in report["reason"]


def test_exit_codes_of_the_command_line(bench: Workbench, base: Path) -> None:
    out = bench.folder / "report"
    runner = CliRunner()
    for count, code in ((2, 0), (3, 1)):
        words = ["compare", str(base), str(run(bench, f"c{count}", count)), "-o", str(out)]
        result = runner.invoke(main.app, [*words, "--criterion", "mlperf-99"])
        assert result.exit_code == code
        assert "(criterion mlperf-99)" in result.stdout
        assert "note: MLPerf's rule compares two means" in result.stdout
    both = runner.invoke(main.app, [*words, "--criterion", "mlperf-99", "--margin", "1"])
    assert both.exit_code == 2 and "--margin 1" in both.stderr
    other = runner.invoke(main.app, [*words, "--criterion", "mlperf"])
    assert other.exit_code == 2 and "mlperf-99" in other.stderr


def test_several_candidates(bench: Workbench, base: Path) -> None:
    paths = [run(bench, f"c{count}", count) for count in (2, 3)]
    comparison = compare_many(base, paths, bench.folder / "all", **MLPERF)
    assert comparison["criterion"] == "mlperf-99" and comparison["margin"] is None
    assert comparison["headline"] == (
        "1 of 2 candidates reach 99 % of the base's score on drawings."
    )
    assert json.loads((bench.folder / "all" / "comparison.json").read_text()) == comparison
    page = (bench.folder / "all" / "comparison.html").read_text("utf-8")
    assert "has to score at least 99 % of the base" in page and "95 % confidence" not in page


def test_reports_of_older_versions_have_a_margin() -> None:
    assert criterion_words({"margin": 0.5}).short == "margin 0.5 points"
