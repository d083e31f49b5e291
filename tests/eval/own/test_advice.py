from __future__ import annotations

import pytest

from vlpress.eval.own.advice import advise, most_losses, smallest_margin
from vlpress.eval.stats.statistics import PairedOutcome, bounds_in_points, judge
from vlpress.eval.stats.verdict import Verdict


def verdict(n: int, lost: int, margin: float) -> Verdict:
    return judge(bounds_in_points(PairedOutcome(n=n, lost=lost, won=0)), margin)


@pytest.mark.parametrize(("n", "margin"), [(133, 2.0), (240, 2.0), (136, 5.0), (1000, 1.0)])
def test_most_losses_are_the_last_that_pass(n: int, margin: float) -> None:
    losses = most_losses(n, margin)
    assert losses is not None
    assert verdict(n, losses, margin) is Verdict.PASS
    assert verdict(n, losses + 1, margin) is not Verdict.PASS


def test_too_few_questions_decide_a_larger_margin_only() -> None:
    assert most_losses(132, 2.0) is None and most_losses(133, 2.0) == 0
    margin = smallest_margin(60)
    assert verdict(60, 0, margin + 0.01) is Verdict.PASS
    assert verdict(60, 0, margin - 0.01) is not Verdict.PASS
    assert "at least 133" in advise(60, 2.0) and f"{margin:.1f} points" in advise(60, 2.0)
    assert "below 0 points; they" in advise(60, 0.0)  # no number of questions is enough


def test_advice_names_the_losses_that_are_allowed() -> None:
    assert "if no answer becomes wrong" in advise(136, 2.0)
    assert f"at most {most_losses(1000, 2.0)} more" in advise(1000, 2.0)
