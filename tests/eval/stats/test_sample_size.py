from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.eval.stats.sample_size import questions_still_needed, questions_to_pass
from vlpress.eval.stats.statistics import PairedOutcome, bounds_in_points, judge
from vlpress.eval.stats.verdict import Verdict


def passes(n: int, lost: int, won: int, margin: float, design_effect: float = 1.0) -> bool:
    bounds = bounds_in_points(PairedOutcome(n, lost, won), design_effect=design_effect)
    return judge(bounds, margin) is Verdict.PASS


@pytest.mark.parametrize(
    ("lost", "won", "questions"), [(0, 0, 133), (1, 0, 222), (2, 0, 300), (1, 1, 176), (6, 3, 445)]
)
def test_questions_for_a_margin_of_two_points(lost: int, won: int, questions: int) -> None:
    assert questions_to_pass(lost, won, 2.0) == questions
    assert passes(questions, lost, won, 2.0)
    assert not passes(questions - 1, lost, won, 2.0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 8), st.integers(0, 8), st.floats(0.5, 20), st.floats(1, 3))
def test_the_number_is_the_smallest_that_passes_and_larger_ones_pass_too(
    lost: int, won: int, margin: float, effect: float
) -> None:
    questions = questions_to_pass(lost, won, margin, design_effect=effect)
    assert questions is not None
    for factor in (1, 1.01, 1.5, 7):
        assert passes(round(questions * factor), lost, won, margin, effect)
    if questions > max(lost + won, 1):
        assert not passes(questions - 1, lost, won, margin, effect)


def test_a_loss_within_a_margin_of_zero_never_passes() -> None:
    assert questions_to_pass(0, 0, 0.0) is None
    assert questions_to_pass(3, 1, 0.0) is None
    assert questions_to_pass(0, 30, 0.0) == 30


@pytest.mark.parametrize(("n", "lost", "won"), [(200, 3, 1), (60, 0, 0), (400, 9, 4)])
def test_scaled_counts_pass_at_the_number_still_needed_and_not_before(
    n: int, lost: int, won: int
) -> None:
    # A common multiple of the counts has integer counts at the same rates.
    needed = questions_still_needed(PairedOutcome(n, lost, won), 2.0)
    assert needed is not None
    scale = (n + needed) / n
    factor = next(k for k in range(1, 1000) if k >= scale)
    assert passes(n * factor, lost * factor, won * factor, 2.0)
    assert not passes(n * (factor - 1), lost * (factor - 1), won * (factor - 1), 2.0)


def test_without_flips_both_functions_agree() -> None:
    assert questions_still_needed(PairedOutcome(60, 0, 0), 2.0) == 133 - 60
    clustered = questions_still_needed(PairedOutcome(60, 0, 0), 2.0, design_effect=2.0)
    assert clustered == 266 - 60 == (questions_to_pass(0, 0, 2.0, design_effect=2.0) or 0) - 60


def test_nothing_is_needed_after_a_pass_and_no_number_helps_a_loss_of_the_margin() -> None:
    assert questions_still_needed(PairedOutcome(133, 0, 0), 2.0) == 0
    assert questions_still_needed(PairedOutcome(100, 2, 0), 2.0) is None
    assert questions_still_needed(PairedOutcome(100, 10, 3), 2.0) is None


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="-1"):
        questions_to_pass(-1, 0, 2.0)
    with pytest.raises(ValueError, match="-2"):
        questions_to_pass(0, 0, -2.0)
