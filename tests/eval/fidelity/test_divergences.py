from __future__ import annotations

from typing import Any

import pytest
from scipy.stats import ttest_rel  # type: ignore[import-untyped]  # scipy has no annotations

from vlpress.eval.fidelity.divergences import (
    by_category,
    find_kl_kind,
    gold_change,
    summarize_fidelity,
    unit_divergences,
)


def record(kl: list[float], lumped: bool = True, **more: Any) -> dict[str, Any]:
    parts: dict[str, Any] = {"kl": kl, "top1": [1] * len(kl), "dp": [0.1] * len(kl), "end": None}
    return parts | ({"kl_lumped": [v / 2 for v in kl]} if lumped else {}) | more


def fields(key: str, unit: str, category: str = "c") -> dict[str, Any]:
    return {"id": key, "unit": unit, "category": category}


def test_numbers_of_a_summary() -> None:
    end = {"kl": 9.0, "kl_lumped": 9.0, "top1": 0, "dp": -0.5}
    found = summarize_fidelity([record([0.1, 0.3]), record([0.2], end=end)])
    assert found is not None
    assert (found["tokens"], found["kl_kind"]) == (3, "full")
    assert (found["kl_mean"], found["kl_median"]) == pytest.approx((0.2, 0.2))
    assert (found["kl_max"], found["top1_agreement"]) == (0.3, 1.0)
    assert found["rms_dp"] == pytest.approx(0.1)
    assert found["first_token"]["kl_mean"] == pytest.approx(0.15)
    assert found["end_of_turn"]["kl_mean"] == 9.0
    assert found["end_of_turn"]["rms_dp"] == 0.5


def test_kinds_are_never_mixed() -> None:
    full, lumped = record([0.4]), record([0.1], lumped=False)
    assert (find_kl_kind([full]), find_kl_kind([full, lumped])) == ("full", "lumped")
    found = summarize_fidelity([full, lumped])
    assert found is not None
    assert (found["kl_kind"], found["kl_max"]) == ("lumped", 0.2)


def test_nothing_to_summarize() -> None:
    assert summarize_fidelity([]) is None
    assert summarize_fidelity([record([])]) is None


def test_categories_hold_all_tokens_and_leave_broken_rows_out() -> None:
    items = [fields("a", "1", "x"), fields("b", "2", "y"), fields("c", "3", "x")]
    items.append({**fields("d", "4", "x"), "fault": "it has no image"})
    records = {"a": record([0.1, 0.2]), "b": record([0.5]), "c": record([0.3])}
    found = by_category(items, records, "full")
    assert {name: entry["tokens"] for name, entry in found.items()} == {"x": 3, "y": 1}
    assert found["x"]["kl_mean"] == pytest.approx(0.2)
    low, high = found["x"]["kl_unit_mean_ci95"]
    assert 0.15 <= low < high <= 0.3
    assert found["y"]["kl_unit_mean_ci95"] is None
    assert unit_divergences(items, records) == pytest.approx({"1": 0.15, "2": 0.5, "3": 0.3})


def test_gold_letters_are_compared_by_unit() -> None:
    items = [fields("a", "1"), fields("b", "1"), fields("c", "2"), fields("d", "3")]
    pairs = {"a": [-1.0, -2.0], "b": [-3.0, -2.0], "c": [-1.0, -1.5], "d": [-0.5, -0.9]}
    records = {key: record([0.1], gold=pair, choice=pair) for key, pair in pairs.items()}
    found = gold_change(items, records)
    assert found is not None
    assert found["n"] == 3
    assert found["delta"] == pytest.approx((0.0 - 0.5 - 0.4) / 3)
    assert found["delta_ci95"][0] <= found["delta"] <= found["delta_ci95"][1]
    expected = ttest_rel([-2.0, -1.5, -0.9], [-2.0, -1.0, -0.5]).pvalue
    assert found["p"] == pytest.approx(expected)


def test_gold_letters_that_do_not_move_are_no_evidence() -> None:
    items = [fields("a", "1"), fields("b", "2")]
    records = {key: record([0.1], gold=[-1.0, -1.0], choice=[-1.0, -1.0]) for key in "ab"}
    found = gold_change(items, records)
    assert found is not None
    assert (found["delta"], found["p"]) == (0.0, 1.0)
    assert gold_change(items, {"a": record([0.1]), "b": record([0.1])}) is None
