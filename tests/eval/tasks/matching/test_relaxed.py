from __future__ import annotations

import math
from typing import Any

import pytest
from eval_files import benchmark_vectors
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks.files.answer_cells import accepted_answers
from vlpress.eval.tasks.matching.relaxed import TOLERANCE, relaxed_hit

NUMBERS = st.floats(min_value=1e-3, max_value=1e6)


@pytest.mark.parametrize("case", benchmark_vectors("relaxed"))
def test_agrees_with_vlmevalkit(case: dict[str, Any]) -> None:
    hit = relaxed_hit(accepted_answers(case["answer"]), case["prediction"])
    assert float(hit) == case["expected"]


@given(NUMBERS, st.floats(min_value=-2 * TOLERANCE, max_value=2 * TOLERANCE))
def test_a_number_is_right_within_the_tolerance(gold: float, deviation: float) -> None:
    if math.isclose(abs(deviation), TOLERANCE, rel_tol=1e-6):
        return  # decided by rounding
    hit = relaxed_hit([repr(gold)], repr(gold * (1 + deviation)))
    assert hit == (abs(deviation) < TOLERANCE)


@given(st.text(max_size=20))
def test_a_text_is_itself(text: str) -> None:
    assert relaxed_hit([text.strip()], text) or "nan" in text.lower() or "inf" in text.lower()
