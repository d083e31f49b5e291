from __future__ import annotations

import json
from typing import Any

import paths
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks.extract import PROFILES, REFUSAL, extract_choice, find_profile

GOLDEN = paths.GOLDEN / "eval_vectors.json"
VECTORS: list[dict[str, Any]] = json.loads(GOLDEN.read_text("utf-8"))["option_extraction"]
COLUMNS = {
    "2024": "vlmevalkit_2024",
    "2025-08": "vlmevalkit_2025_08",
    "2026-06": "vlmevalkit_2026_06",
    "qwen": "qwen_official_mmmu",
}
PHRASED: list[dict[str, Any]] = json.loads(
    (paths.GOLDEN / "phrased_answers.json").read_text("utf-8")
)["answers"]
ANIMALS = {"A": "cat", "B": "dog", "C": "bird", "D": "fish"}


@pytest.mark.parametrize("profile", COLUMNS)
@pytest.mark.parametrize("case", VECTORS, ids=lambda c: c["id"])
def test_recorded_cases(case: dict[str, Any], profile: str) -> None:
    expected = case["expected"][COLUMNS[profile]]
    found = extract_choice(case["prediction"], case["choices"], profile)
    assert found == (expected or None)


def test_every_recorded_case_is_there() -> None:
    assert len(VECTORS) == 102
    assert set(COLUMNS) == set(PROFILES)


@pytest.mark.parametrize("profile", ["2024", "2025-08"])
@pytest.mark.parametrize("answer", PHRASED, ids=lambda answer: answer["case"])
def test_hand_written_answers(answer: dict[str, Any], profile: str) -> None:
    letter = extract_choice(answer["prediction"], answer["choices"], profile)
    assert letter == answer[profile]


def test_most_hand_written_answers_differ_between_the_profiles() -> None:
    differing = [answer for answer in PHRASED if answer["2024"] != answer["2025-08"]]
    assert len(differing) > len(PHRASED) / 2


def test_verbose_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERBOSE", "1")
    assert extract_choice("The answer is A", ANIMALS) == "A"


@given(st.text(max_size=60), st.sampled_from(sorted(PROFILES)))
def test_answer_is_an_option_or_a_refusal_or_nothing(text: str, profile: str) -> None:
    assert extract_choice(text, ANIMALS, profile) in {*ANIMALS, REFUSAL, None}


@given(st.sampled_from("ABCD"), st.sampled_from(["{}", "{}.", "({})", "**{}**", "{}: "]))
def test_a_lone_letter_wins_under_all_profiles(letter: str, form: str) -> None:
    assert {extract_choice(form.format(letter), ANIMALS, p) for p in PROFILES} == {letter}


def test_unknown_profile_is_named() -> None:
    with pytest.raises(ValueError, match=r"'v9'.*2024"):
        find_profile("v9")
