from __future__ import annotations

import math
from typing import Any

import pytest
from eval_files import vectors
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks.matching.mmmu_official import official_choice, official_open_hit, parse_open

ANIMALS = {"A": "cat", "B": "dog", "C": "bird", "D": "fish"}
GUESSED = "RANDOM"


@pytest.mark.parametrize("case", vectors("option_extraction"), ids=lambda c: c["id"])
def test_recorded_choices(case: dict[str, Any]) -> None:
    expected = case["expected"]["mmmu_official_mc"]
    found = official_choice(case["prediction"], case["choices"])
    assert found == (None if expected == GUESSED else expected)


@pytest.mark.parametrize("case", vectors("mmmu_official_open"), ids=lambda c: c["id"])
def test_recorded_open_answers(case: dict[str, Any]) -> None:
    gold = case["gold"] if isinstance(case["gold"], list) else [case["gold"]]
    assert sorted(map(str, parse_open(case["response"]))) == case["expected_parsed"]
    assert official_open_hit(gold, case["response"]) is case["expected_correct"]


def test_the_last_letter_counts() -> None:
    assert official_choice("(A) no, rather (C), not (B)", ANIMALS) == "B"
    assert official_choice("A or maybe D or C then", ANIMALS) == "C"


def test_option_texts_count_in_longer_answers_only() -> None:
    assert official_choice("surely it is a dog", ANIMALS) is None
    assert official_choice("surely it is a dog, not a Bird", ANIMALS) == "C"


@pytest.mark.parametrize("said", ["nan", "inf", "1e999", "=", "is ", ".", ""])
def test_odd_answers_are_parsed(said: str) -> None:
    assert not official_open_hit(["4"], said)


@given(st.floats(-1e6, 1e6).map(lambda x: round(x, 2)))
def test_a_number_matches_itself_in_a_sentence(value: float) -> None:
    assert official_open_hit([f"{value:.2f}"], f"the result is {value:.2f}")
    assert not official_open_hit([f"{value + 1:.2f}"], f"the result is {value:.2f}")


@given(st.text(max_size=40))
def test_any_text_is_parsed(text: str) -> None:
    assert official_choice(text, ANIMALS) in {*ANIMALS, None}
    assert all(
        isinstance(p, str) or not math.isfinite(p) or p == round(p, 2) for p in parse_open(text)
    )
