from __future__ import annotations

from typing import Any

import pytest
from eval_files import benchmark_vectors
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks.files.answer_cells import accepted_answers
from vlpress.eval.tasks.matching.vqa_accuracy import vqa_accuracy


@pytest.mark.parametrize("case", benchmark_vectors("vqa"))
def test_agrees_with_vlmevalkit(case: dict[str, Any]) -> None:
    score = vqa_accuracy(accepted_answers(case["answer"]), case["prediction"])
    assert score == pytest.approx(case["expected"], abs=1e-12)


@pytest.mark.parametrize(("given_by", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1)])
def test_score_by_the_number_of_people(given_by: int, score: float) -> None:
    answers = ["yes"] * given_by + ["no"] * (10 - given_by)
    assert vqa_accuracy(answers, "Yes") == pytest.approx(score)


@given(st.lists(st.sampled_from(["cat", "dog", "two"]), min_size=2, max_size=10))
def test_order_of_people_does_not_matter(answers: list[str]) -> None:
    shuffled = sorted(answers)
    assert vqa_accuracy(answers, "2") == pytest.approx(vqa_accuracy(shuffled, "2"))
