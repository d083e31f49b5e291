from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eval_models import CUT, right
from workbench import Workbench

from vlpress.eval import compare
from vlpress.eval.answering.predictions import Prediction
from vlpress.eval.report.sections.lengths import summarize_reasoning
from vlpress.eval.report.words.answer_warnings import model_warnings, pair_warnings
from vlpress.eval.results import StoredTask, read_run

pytestmark = pytest.mark.usefixtures("packaged")

LOOP = "Wait, is it blue? " * 8
OPENED = {"reasoning": "think-opened"}


def task(answers: list[dict[str, Any]], rule: str | None = None) -> StoredTask:
    """A task of items with the answer B, changed as given."""
    made = [Prediction(str(i), "B", 1, True, 0.1) for i in range(len(answers))]
    predictions = {p.id: replace(p, **change) for p, change in zip(made, answers, strict=True)}
    fingerprint = {"reasoning": rule} if rule else {}
    items = tuple({"id": key, "prompt": key} for key in predictions)
    return StoredTask("t", {"fingerprint": fingerprint}, items, predictions, Path())


def some(count: int, of: int, **change: Any) -> list[dict[str, Any]]:
    return [change] * count + [{}] * (of - count)


def test_shares_above_a_threshold_are_named() -> None:
    assert model_warnings("model", task(some(5, 100, stopped=False))) == []
    [warning] = model_warnings("model", task(some(6, 100, stopped=False)))
    assert "6 of the model's 100 answers were cut off" in warning and "CUT_OFF_WARNING" in warning
    assert model_warnings("base", task(some(1, 100, prediction=LOOP))) == []
    [warning] = model_warnings("base", task(some(2, 100, reasoning=LOOP, is_unfinished=False)))
    assert "2 of the base's 100 answers repeat themselves" in warning
    assert model_warnings("base", task([])) == []


def test_unfinished_reasoning_is_cut_off_though_the_model_stopped() -> None:
    [warning] = model_warnings("base", task(some(1, 4, is_unfinished=True, reasoning="Hm.")))
    assert "1 of the base's 4 answers were cut off" in warning


def test_reasoning_that_was_scored_is_named() -> None:
    answers = some(1, 200, prediction="Two legs.</think> B")
    [warning] = model_warnings("model", task(answers))
    assert "1 of the model's answers contain </think>" in warning
    assert "--reasoning think-opened or think-tags" in warning
    assert model_warnings("model", task(answers, "think-tags")) == []


def test_difference_is_named_if_chance_does_not_explain_it() -> None:
    base = task(some(0, 300))
    assert pair_warnings(base, task(some(5, 300, stopped=False))) == []  # p = 0.0625
    [warning] = pair_warnings(base, task(some(6, 300, stopped=False)))
    assert "0 of the base's answers and 6 of the candidate's were cut off" in warning


@pytest.mark.parametrize(("count", "p95"), [(1, 1), (20, 19), (100, 95)])
def test_tokens_of_reasonings(count: int, p95: int) -> None:
    answers = [
        Prediction(str(n), "B", n + 1, True, 0.1, reasoning="x", reasoning_tokens=n)
        for n in range(1, count + 1)
    ]
    expected: dict[str, Any] = {"answers": count, "unfinished": 0, "mean_tokens": (count + 1) / 2}
    expected["median_tokens"] = (count + 1) / 2
    assert summarize_reasoning(answers) == {**expected, "p95_tokens": p95}


def test_reasonings_without_counts() -> None:
    plain = Prediction("1", "B", 1, True, 0.1)
    assert summarize_reasoning([plain]) is None
    served = replace(plain, reasoning="x", is_unfinished=True)
    known = replace(served, reasoning_tokens=7)
    found = summarize_reasoning([served, known, plain])
    unknown = dict.fromkeys(("mean_tokens", "median_tokens", "p95_tokens"))
    assert found == {"answers": 2, "unfinished": 2, **unknown}


def test_report_of_models_that_reason(bench: Workbench) -> None:
    def base_says(item: Any) -> str:
        return f"I look at it. </think> {right(item)}"

    def candidate_says(item: Any) -> str:
        if int(item.id) % 2:
            return f"It is {right(item)}. {LOOP}{CUT}"
        return base_says(item)

    base = bench.run("base", base_says, open=OPENED, is_reference=True)
    cand = bench.run("cand", candidate_says, open=OPENED, seed=1, reference=base)
    report = compare(base, cand, bench.folder / "report")
    entry = report["benchmarks"]["builtin-mmbench"]
    assert (entry["reasoning_rule"], entry["max_new_tokens"]) == ("think-opened", 3)
    assert (entry["base"], entry["candidate"]) == (100, 50)  # unfinished ones are not read
    health = entry["health"]
    found = health["base"]["reasoning"]
    lengths = dict.fromkeys(("mean_tokens", "median_tokens", "p95_tokens"), 5)
    assert found == {"answers": 32, "unfinished": 0, **lengths}
    counts = [
        [health[side][key] for key in ("truncated", "repeating", "empty")]
        for side in ("base", "candidate")
    ]
    assert counts == [[0, 0, 0], [16, 16, 16]]
    assert health["candidate"]["reasoning"]["unfinished"] == 16
    warnings = [w for w in report["warnings"] if w.startswith("builtin-mmbench: ")]
    assert len(warnings) == 4  # cut off and repeating, alone and against the base
    # Divergences of the base's answers: reasoning and answer apart.
    fidelity = report["fidelity"]
    assert fidelity["tokens"] == fidelity["reasoning"]["tokens"] + fidelity["answer"]["tokens"]
    assert fidelity["answer"]["tokens"] < fidelity["reasoning"]["tokens"]
    assert fidelity["per_benchmark"]["builtin-mmbench"]["gold"]["n"] == 8
    text = (bench.folder / "report" / "report.md").read_text("utf-8")
    assert "p95 tokens" in text and "reasoning KL" in text and "repeat themselves" in text
    page = (bench.folder / "report" / "report.html").read_text("utf-8")
    assert "Reasoning before the answers" in page
    stored = read_run(cand).tasks["builtin-mmbench"].predictions
    assert {p.prediction for p in stored.values()} == {"", *"ABCD"}


def test_report_without_reasoning_says_so(bench: Workbench) -> None:
    base = bench.run("base", is_reference=True)
    report = compare(base, bench.run("cand", reference=base), bench.folder / "report")
    for entry in report["benchmarks"].values():
        assert (entry["reasoning_rule"], entry["warnings"]) == ("none", [])
        assert entry["health"]["base"]["reasoning"] is None
    assert report["fidelity"]["reasoning"] is None and report["fidelity"]["answer"] is None
    assert "Reasoning before" not in (bench.folder / "report" / "report.html").read_text("utf-8")
