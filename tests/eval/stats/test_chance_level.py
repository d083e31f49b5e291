from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest  # type: ignore[import-untyped]  # scipy has no annotations

from vlpress.eval.stats.chance_level import (
    ANSWER_CLASSES,
    CHANCE_CONFIDENCE,
    ROWS_PER_CLASS,
    chance_percent,
    is_choice,
    lower_bound_percent,
    row_chances,
)
from vlpress.eval.tasks.task import Unit

FOUR = dict.fromkeys("ABCD", "text")


def unit(name: str, *rows: str) -> Unit:
    return Unit(name, False, "c", "g", rows, ())


def open_row(number: int, *answers: str, **more: Any) -> dict[str, Any]:
    return {"id": str(number), "answers": list(answers), "choices": {}, "metric": "exact", **more}


def test_options_and_rotations_set_the_chance() -> None:
    rows = [{"id": i, "choices": FOUR, "answer": "A"} for i in "abcd"]
    rows.append({"id": "e", "choices": {"A": "x", "B": "y"}, "answer": "B"})
    assert chance_percent(rows, [unit("1", "e")]) == 50
    assert chance_percent(rows, [unit("1", *"abcd")]) == pytest.approx(100 / 256)
    assert chance_percent(rows, [unit("1", *"abcd"), unit("2", "e")]) == pytest.approx(
        (100 / 256 + 50) / 2
    )
    assert chance_percent(rows, []) is None


def test_open_and_broken_rows_cannot_be_guessed() -> None:
    rows = [
        open_row(1, "x"),
        open_row(2, "y"),
        {"id": "3", "choices": FOUR, "answer": "A", "fault": "no image"},
        open_row(4, "A", choices=FOUR),  # options are shown, the answer is still free text
    ]
    assert row_chances(rows) == {"1": 0, "2": 0, "3": 0, "4": 0}
    assert not is_choice(rows[3]) and is_choice({**rows[3], "metric": "choice"})


def test_several_right_options() -> None:
    row = {"id": "1", "choices": FOUR, "metric": "choice", "answers": ["A", "C"]}
    assert row_chances([row]) == {"1": 0.5}


def test_few_answers_of_many_open_questions_are_options() -> None:
    def chances(classes: int, rows: int) -> set[float]:
        return set(row_chances([open_row(i, f"w{i % classes}") for i in range(rows)]).values())

    assert chances(2, 2 * ROWS_PER_CLASS) == {0.5}
    assert chances(2, 2 * ROWS_PER_CLASS - 1) == {0}
    assert chances(ANSWER_CLASSES, 100) == {1 / ANSWER_CLASSES}
    assert chances(ANSWER_CLASSES + 1, 100) == {0}
    assert chances(1, 100) == {0}, "one gold answer: nothing to choose from"


@given(st.integers(1, 400), st.data())
def test_bound_inverts_the_exact_test(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    bound = lower_bound_percent(hits, n) / 100
    assert 0 <= bound <= hits / n
    if hits:
        p = float(binomtest(hits, n, bound, alternative="greater").pvalue)
        assert p == pytest.approx(1 - CHANCE_CONFIDENCE, rel=1e-6)
    else:
        assert bound == 0
