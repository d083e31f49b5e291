from __future__ import annotations

from typing import Any

import pytest
from eval_files import benchmark_vectors
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks.matching.mmmu_pro_official import official_pro_choice

CHOICES = {"A": "cat", "B": "dog", "C": "bird"}


@pytest.mark.parametrize("case", benchmark_vectors("mmmu_pro_official"))
def test_agrees_with_the_authors(case: dict[str, Any]) -> None:
    assert official_pro_choice(case["prediction"], case["choices"]) == case["expected"]


@given(st.text(), st.sampled_from("ABC"))
def test_the_last_answer_line_decides(reasoning: str, letter: str) -> None:
    assert official_pro_choice(f"{reasoning}\nAnswer: {letter}", CHOICES) == letter
