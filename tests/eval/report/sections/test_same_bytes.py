import json
from pathlib import Path
from typing import Any

import pytest

from vlpress.eval.report.markdown import render_comparison
from vlpress.eval.report.sections.same_bytes import QUANTIZED, RANDOM, same_bytes_section
from vlpress.eval.report.summary import summarize_comparison
from vlpress.eval.report.tables.same_bytes import same_bytes_table, same_bytes_warnings
from vlpress.eval.results import StoredRun

SHRINK = {"method": "shrink", "score": "wanda"}
CHANCE = {"method": "shrink", "score": "random"}
ROTATE = {"method": "rotate", "seeds": 8}


class Runs:
    """Evaluations without tasks: sizes, numbers of weights and records of checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = self._stored("base", 1000, 500)
        self.by_name: dict[str, StoredRun] = {}

    def _stored(self, name: str, size: int | None, weights: int | None) -> StoredRun:
        info = {"model": {"name": name, "bytes": size, "weights": weights}}
        return StoredRun(self.folder / name, info, {})

    def add(
        self, name: str, size: int | None, weights: int | None, *preparations: dict[str, Any]
    ) -> None:
        self.by_name[name] = self._stored(name, size, weights)
        if preparations:
            (self.folder / name).mkdir()
            record = {"layers": [], "preparations": preparations}
            (self.folder / name / "quantization.json").write_text(json.dumps(record))


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    runs = Runs(tmp_path)
    runs.add("narrow", 900, 450, SHRINK)
    runs.add("w8", 520, 500)
    runs.add("w4", 300, 500)
    runs.add("chance", 899, 450, CHANCE)
    return runs


def difference(delta: float = 0.0, kl: float | None = None) -> dict[str, Any]:
    return {
        "n": 9,
        "delta": delta,
        "ci95": [delta - 1, delta + 2],
        "mcnemar_p": 1.0,
        "kl_delta": kl,
        "kl_delta_ci95": None if kl is None else [kl - 0.1, kl + 0.2],
    }


def pair(first: str, second: str, **benchmarks: Any) -> dict[str, Any]:
    return {"first": first, "second": second, "benchmarks": benchmarks}


def test_nearest_quantization_of_at_most_the_same_bytes(runs: Runs) -> None:
    pairs = [
        pair("narrow", "w8", a=difference(3.0, -0.5), b=difference(0.0, 0.5)),
        pair("narrow", "chance", a=difference(-5.0, 0.9), b=difference(-5.0, 0.9)),
    ]
    plain, random = same_bytes_section(runs.base, runs.by_name, pairs)
    assert (plain["candidate"], plain["against"], plain["kind"]) == ("narrow", "w8", QUANTIZED)
    assert (plain["bytes"], plain["against_bytes"]) == (900, 520)
    # The pair is second minus first; the entry is the candidate minus the other one.
    assert plain["benchmarks"]["a"] == {
        "delta": -3.0,
        "ci95": [-5.0, -2.0],
        "kl_delta": 0.5,
        "kl_delta_ci95": [pytest.approx(0.3), pytest.approx(0.6)],
    }
    assert (plain["better_on"], plain["worse_on"]) == (["b"], ["a"])
    assert plain["warning"] == (
        "quantization alone (w8, 0.58x its bytes) is better than narrow on a"
    )
    assert (random["against"], random["kind"]) == ("chance", RANDOM)
    assert random["better_on"] == ["a", "b"]
    assert random["warning"] is None


def test_scores_decide_without_divergences(runs: Runs) -> None:
    pairs = [
        pair("w8", "narrow", a=difference(1.5), b=difference(0.5)),
        pair("narrow", "chance", a=difference()),
    ]
    plain, random = same_bytes_section(runs.base, runs.by_name, pairs)
    assert plain["better_on"] == ["a"]
    assert random["better_on"] == []
    assert random["warning"] == (
        "random choice (chance, 1.00x its bytes) is not shown to be worse than narrow on a"
    )


def test_missing_controls_are_asked_for(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add("narrow", 250, 450, SHRINK)
    runs.add("w4", 300, 500)
    runs.add("chance", 500, 450, CHANCE)
    warnings = [e["warning"] for e in same_bytes_section(runs.base, runs.by_name, [])]
    assert [text.partition(",")[0] for text in warnings] == [
        "narrow has fewer weights than the base",
        'narrow has no candidate beside it that removes as much at random (score = "random"): '
        "add one as its control",
    ]


def test_smaller_model_of_other_origin_has_no_random_control(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add("sibling", 600, 300)
    runs.add("pruned tokens", 900, 480, {"method": "vocab"})
    entries = same_bytes_section(runs.base, runs.by_name, [])
    assert [(e["candidate"], e["kind"]) for e in entries] == [
        ("sibling", QUANTIZED),
        ("pruned tokens", QUANTIZED),
    ]


def test_models_with_all_weights_or_of_unknown_size_have_no_entry(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add("w4", 300, 500)
    runs.add("untied", 1100, 550)
    runs.add("rotated", 1000, 550, ROTATE)
    runs.add("server", None, None)
    assert same_bytes_section(runs.base, runs.by_name, []) == []


def test_texts_and_table(runs: Runs) -> None:
    pairs = [
        pair("narrow", "w8", a=difference(3.0, -0.5)),
        pair("narrow", "chance", a=difference(-5.0, 0.9)),
    ]
    comparison: dict[str, Any] = {
        "base": "base",
        "headline": "None.",
        "synthetic": False,
        "next_steps": [],
        "verdict": "FAIL",
        "verdict_reasons": [],
        "margin": 2.0,
        "criterion": "margin",
        "pairs": [],
        "candidates": {"narrow": _brief()},
        "same_bytes": same_bytes_section(runs.base, runs.by_name, pairs),
    }
    (warning,) = same_bytes_warnings(comparison)
    table = same_bytes_table(comparison)
    assert table is not None
    assert [row["against"] for row in table.rows] == ["w8", "chance"]
    text = render_comparison(comparison)
    assert "## Fewer weights beside the same bytes" in text
    assert "narrow on a" in text
    assert "quantization alone" in text
    assert f"warning: {warning}" in summarize_comparison(comparison)
    del comparison["same_bytes"]
    assert same_bytes_table(comparison) is None
    assert "same bytes" not in render_comparison(comparison)


def _brief() -> dict[str, Any]:
    return {
        "verdict": "FAIL",
        "scope": "full",
        "notes": [],
        "benchmarks": {},
        "size": {"candidate_bytes": 900, "base_bytes": 1000, "bits_per_weight": 16.0},
        "fidelity": None,
        "mean_score": {"base": 1.0, "candidate": 1.0},
    }
