from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.pixels.budgets import BUDGETS, BudgetRange, choose_budget, parse_budgets
from vlpress.eval.stats.verdict import Verdict

TINY = BudgetRange(3136, 12845056, 28 * 28)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, tuple(sorted(BUDGETS, reverse=True))),
        ("256,768,512", (768, 512, 256)),
        (256, (256,)),
        (["256", 512], (512, 256)),
        (("4,9", "16"), (16, 9, 4)),
    ],
)
def test_budgets_are_sorted_from_the_largest(given: object, expected: tuple[int, ...]) -> None:
    assert parse_budgets(given) == expected  # type: ignore[arg-type]


def test_a_repeated_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="--budgets names 256 twice"):
        parse_budgets(["256,512", "256"])


def test_the_range_is_that_of_the_preprocessor() -> None:
    assert (TINY.least, TINY.most) == (4, 16384)
    # A minimum that is no multiple of a token needs the next larger budget.
    assert BudgetRange(3137, 12845056, 784).least == 5
    TINY.check([4, 16384])


@pytest.mark.parametrize("budget", [3, 16385])
def test_budgets_out_of_range_are_refused_with_the_range(budget: int) -> None:
    with pytest.raises(ValueError, match=rf"--budgets {budget}: .* 4 to 16384 visual tokens"):
        TINY.check([256, budget])


def test_the_choice_stops_at_the_first_budget_that_does_not_pass() -> None:
    verdicts = {1280: "PASS", 768: "PASS", 512: "INCONCLUSIVE", 256: "PASS"}
    assert choose_budget(verdicts) == 768
    assert choose_budget({**verdicts, 512: "PASS"}) == 256
    assert choose_budget({**verdicts, 1280: "FAIL"}) is None
    assert choose_budget({}) is None


@given(st.dictionaries(st.integers(1, 50), st.sampled_from(list(Verdict))))
def test_the_chosen_budget_and_all_larger_ones_pass(verdicts: dict[int, Verdict]) -> None:
    chosen = choose_budget(verdicts)
    if chosen is None:
        assert not verdicts or verdicts[max(verdicts)] != Verdict.PASS
        return
    assert all(verdicts[b] == Verdict.PASS for b in verdicts if b >= chosen)
    below = [b for b in verdicts if b < chosen]
    assert not below or verdicts[max(below)] != Verdict.PASS
