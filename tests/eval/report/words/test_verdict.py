"""What a verdict says: never permission to ship from drawings, samples or guesses."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from eval_files import ocrbench_rows, write_tsv
from eval_models import right
from typer.testing import CliRunner
from workbench import Workbench, lossy

from vlpress.cli import main
from vlpress.eval.report.words.criterion_words import criterion_words
from vlpress.eval.report.words.verdict import (
    Scope,
    VerdictText,
    comparison_steps,
    comparison_title,
    find_scope,
    verdict_label,
    verdict_text,
)
from vlpress.eval.stats.sample_size import questions_to_pass

PERMISSION = re.compile(
    r"\b(may|can|could|ready to|safe to|should) (be )?(ship|release|deploy)", re.I
)
WIDER = re.compile(r"(wider|larger|bigger|higher|raise|increase|widen)\W+(the |a )?margin", re.I)


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "verdict": "PASS",
        "synthetic": False,
        "limited": False,
        "n": 60,
        "flips": {"right_to_wrong": 0, "wrong_to_right": 0, "wrong_to_wrong": 0},
        "health_reasons": [],
        "questions_still_needed": None,
        **changes,
    }


def words(verdict: str, *entries: Mapping[str, Any], margin: float = 2.0) -> VerdictText:
    named = {f"bench{i}": part for i, part in enumerate(entries)}
    return verdict_text({"verdict": verdict, "benchmarks": named, "margin": margin})


def whole(text: VerdictText) -> str:
    return f"{text.title} {text.reason} {text.advice}"


def test_only_all_questions_of_real_benchmarks_permit_shipping() -> None:
    assert words("PASS", entry()).title == "The candidate may ship."
    for change in ({"synthetic": True}, {"limited": True}, {"synthetic": True, "limited": True}):
        text = words("PASS", entry(), entry(**change))
        assert not PERMISSION.search(whole(text).replace("should not ship", "")), text
        assert text.steps


def test_every_verdict_has_a_next_step_and_none_widens_the_margin() -> None:
    for verdict in ("PASS", "FAIL", "INCONCLUSIVE"):
        for change in ({}, {"synthetic": True}, {"limited": True}):
            for needed in (None, 73):
                part = entry(verdict=verdict, questions_still_needed=needed, **change)
                text = words(verdict, part)
                assert text.steps and all(step.endswith((".", ")")) for step in text.steps)
                assert not WIDER.search(whole(text))


def test_the_scope_is_the_weakest_of_the_benchmarks() -> None:
    full, sample, drawn = entry(), entry(limited=True), entry(synthetic=True)
    assert find_scope({"a": full}) is Scope.FULL
    assert find_scope({"a": full, "b": sample}) is Scope.SAMPLE
    assert find_scope({"a": sample, "b": drawn}) is Scope.SYNTHETIC
    assert verdict_label("PASS", "synthetic") == "PASS on drawings"
    assert verdict_label("FAIL", "sample") == "FAIL on a sample"
    assert verdict_label("PASS", "full") == "PASS"
    assert {verdict_label("INCONCLUSIVE", scope) for scope in Scope} == {"INCONCLUSIVE"}


def test_undecided_names_the_missing_questions() -> None:
    part = entry(verdict="INCONCLUSIVE", questions_still_needed=73, limited=True)
    text = words("INCONCLUSIVE", part, {**part, "questions_still_needed": 1385})
    assert "about 73 more on bench0 and 1,385 more on bench1" in text.reason
    assert "--limit 1445 " in text.advice
    lost = words("INCONCLUSIVE", entry(verdict="INCONCLUSIVE"))
    assert "bench0" in lost.reason and "more likely to end in FAIL" in lost.reason
    assert "--limit" not in lost.advice
    complete = words("INCONCLUSIVE", {**part, "limited": False})
    assert "--limit" not in complete.advice and "All questions of bench0" in complete.advice


def test_titles_of_comparisons() -> None:
    verdicts = ["PASS", "FAIL", "INCONCLUSIVE"]
    words = criterion_words({"margin": 2.0})
    assert comparison_title(verdicts, "full", words) == "1 of 3 candidates may ship."
    for scope in ("sample", "synthetic"):
        assert comparison_title(verdicts, scope, words).startswith("1 of 3 candidates stay within")
        assert not PERMISSION.search(comparison_title(verdicts, scope, words))
        assert comparison_steps(verdicts, scope) and comparison_steps(["FAIL"], scope)


def outputs(bench: Workbench, base: Path, *candidates: Path, margin: float) -> dict[str, str]:
    """All texts of a comparison: the console's, and every file except the list of flips."""
    out = bench.folder / "report"
    runs = [str(path) for path in (base, *candidates)]
    result = CliRunner().invoke(main.app, ["compare", *runs, "-o", str(out), f"--margin={margin}"])
    assert result.exit_code in (0, 1, 4), result.output
    files = [*out.rglob("*.html"), *out.rglob("*.md"), *out.rglob("*report.json")]
    files += out.rglob("comparison.json")
    texts = {str(path.relative_to(out)): path.read_text("utf-8") for path in files}
    assert len(texts) >= 3
    return {"console": result.stdout, **texts}


@pytest.fixture
def real(tmp_path: Path) -> str:
    """A benchmark file that is not one of the packaged drawings."""
    return f"OCRBench={write_tsv(tmp_path / 'OCRBench.tsv', ocrbench_rows(60))}"


@pytest.mark.usefixtures("packaged")
@pytest.mark.parametrize("kind", ["synthetic", "limited", "near chance"])
@pytest.mark.parametrize("several", [False, True])
def test_no_output_permits_shipping_without_evidence(
    bench: Workbench, real: str, kind: str, several: bool
) -> None:
    options: dict[str, Any] = {"names": [real]}
    say = right
    if kind == "synthetic":
        options = {"names": ["builtin-mmbench", "builtin-ocrbench"]}
    elif kind == "limited":
        options["open"] = {"limit": 30}
    else:
        say = lambda item: right(item) if item.id in "0" else f"no {item.id}"  # noqa: E731
    base, *candidates = (bench.run(name, say, **options) for name in ("base", "a", "b"))
    texts = outputs(bench, base, *candidates[: 1 + several], margin=60)
    for name, text in texts.items():
        assert not PERMISSION.search(text), name
        assert not WIDER.search(text), name
    if kind == "near chance":
        assert not any(re.search(r"verdict: PASS|>PASS<", text) for text in texts.values())


def test_a_full_run_of_a_real_file_permits_shipping_in_every_output(
    bench: Workbench, real: str
) -> None:
    base, cand = (bench.run(name, names=[real]) for name in ("base", "cand"))
    texts = outputs(bench, base, cand, margin=10)
    assert all("The candidate may ship." in text for text in texts.values())


def test_the_report_counts_the_questions_still_needed(bench: Workbench, real: str) -> None:
    base = bench.run("base", names=[real], open={"limit": 30})
    cand = bench.run("cand", lossy("3"), names=[real], open={"limit": 30})
    outputs(bench, base, base, margin=2)
    report = json.loads((bench.folder / "report" / "report.json").read_text("utf-8"))
    needed = (questions_to_pass(0, 0, 2.0) or 0) - 30
    assert report["benchmarks"]["OCRBench"]["questions_still_needed"] == needed
    assert f"about {needed} more on OCRBench" in report["reason"]
    assert any(f"--limit {30 + needed} " in step for step in report["next_steps"])
    outputs(bench, base, cand, margin=2)
    report = json.loads((bench.folder / "report" / "report.json").read_text("utf-8"))
    entry = report["benchmarks"]["OCRBench"]
    lost = entry["flips"]["right_to_wrong"]
    assert (entry["questions_still_needed"] is None) == (100 * lost / 30 >= 2)
