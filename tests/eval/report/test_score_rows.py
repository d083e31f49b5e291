from __future__ import annotations

import math
from typing import Any

import pytest
from eval_files import vectors

from vlpress.eval import circular_hits, extract_choice, mmmu_exact_hit, ocrbench_hit

HEAD = "2026-06"  # the rules the cases were recorded under


@pytest.mark.parametrize("case", vectors("circular"), ids=lambda c: c["id"])
def test_recorded_circular_cases(case: dict[str, Any]) -> None:
    expected = {int(key): hit for key, hit in case["expected_hits"].items()}
    assert circular_hits(case["rows"], HEAD) == expected


@pytest.mark.parametrize(
    "case", vectors("mmmu_vlmevalkit_exact_matching"), ids=lambda c: str(c["index"])
)
def test_recorded_mmmu_cases(case: dict[str, Any]) -> None:
    assert mmmu_exact_hit(case, HEAD) is bool(case["expected_hit"])


@pytest.mark.parametrize("case", vectors("ocrbench"), ids=lambda c: c["id"])
def test_recorded_ocrbench_cases(case: dict[str, Any]) -> None:
    hit = ocrbench_hit(case["category"], case["answers"], case["prediction"])
    assert hit is bool(case["expected"])


def row(index: int, answer: str, prediction: object, **more: object) -> dict[str, object]:
    return {"index": index, "answer": answer, "prediction": prediction, "A": "x", "B": "y", **more}


@pytest.mark.parametrize("absent", [None, math.nan, ""])
def test_an_absent_option_cannot_be_chosen(absent: object) -> None:
    assert circular_hits([row(1, "A", "A C", C=absent)]) == {1: 1}
    assert circular_hits([row(1, "A", "A C", C="z")]) == {1: 0}


def test_a_given_group_wins_over_the_index() -> None:
    rows = [row(1, "A", "A", g_index=1), row(2, "B", "A", g_index=1)]
    assert circular_hits(rows) == {1: 0}


def test_an_empty_answer_is_wrong_and_not_missing() -> None:
    assert circular_hits([row(1, "A", "")]) == {1: 0}
    assert not mmmu_exact_hit(row(1, "A", ""))


def test_profiles_decide() -> None:
    answer = "The answer is b."
    options = {"A": "x", "B": "y"}
    assert [extract_choice(answer, options, p) for p in ("2025-08", HEAD)] == [None, "B"]
    assert [circular_hits([row(1, "B", answer)], p) for p in ("2025-08", HEAD)] == [{1: 0}, {1: 1}]


def test_a_row_without_its_columns_is_named() -> None:
    with pytest.raises(ValueError, match=r"row 1 has no prediction.* index, answer"):
        circular_hits([row(1, "A", "A"), {"index": 2, "answer": "A"}])
    with pytest.raises(ValueError, match="repeats index 1"):
        circular_hits([row(1, "A", "A"), row(1, "A", "A")])
