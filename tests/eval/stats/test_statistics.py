from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar  # type: ignore[import-untyped]  # untyped

from vlpress.eval.stats.statistics import (
    Interval,
    PairedOutcome,
    combine_verdicts,
    count_outcomes,
    judge,
    mcnemar,
    mean_interval,
    one_sided_bounds,
    paired_interval,
)
from vlpress.eval.stats.verdict import Verdict


@st.composite
def outcomes(draw: st.DrawFn) -> PairedOutcome:
    n = draw(st.integers(1, 2000))
    lost = draw(st.integers(0, n))
    return PairedOutcome(n, lost, draw(st.integers(0, n - lost)))


@pytest.mark.parametrize(
    ("lost", "won", "p"), [(15, 5, 0.0414), (0, 5, 0.0625), (10, 10, 1.0), (30, 10, 0.0022)]
)
def test_mcnemar_known_values(lost: int, won: int, p: float) -> None:
    assert mcnemar(PairedOutcome(100, lost, won)) == pytest.approx(p, abs=5e-5)
    assert mcnemar(PairedOutcome(100, won, lost)) == pytest.approx(p, abs=5e-5)


def test_mcnemar_without_differences() -> None:
    assert mcnemar(PairedOutcome(7, 0, 0)) == 1.0


def test_interval_without_differences_is_closed_form() -> None:
    # The statistic becomes sqrt(n d / (1 - d)), so the bound is z^2 / (n + z^2).
    z2 = 1.959964**2
    interval = paired_interval(PairedOutcome(400, 0, 0))
    assert interval.high == pytest.approx(z2 / (400 + z2), rel=1e-5)
    assert interval.low == pytest.approx(-interval.high)


def test_interval_published_example() -> None:
    # Remission before and after consolidation therapy (Cavo et al. 2012) in Fagerland, Lydersen,
    # Laake, "Statistical Analysis of Contingency Tables", chapter 8: Tango's interval.
    interval = paired_interval(PairedOutcome(161, lost=16, won=6))
    assert interval.low == pytest.approx(-0.1240, abs=5e-5)
    assert interval.high == pytest.approx(-0.0054, abs=5e-5)


def restricted_score(outcome: PairedOutcome, delta: float) -> float:
    """The score statistic, with the nuisance parameter found by brute-force likelihood."""
    n, b, c = outcome.n, outcome.won, outcome.lost

    def loss(q: float) -> float:
        terms = ((b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta))
        return -sum(k * math.log(p) for k, p in terms if k and p > 0) + sum(
            1e9 for k, p in terms if k and p <= 0
        )

    bounds = (max(0.0, -delta), (1 - delta) / 2)
    q = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
    return (b - c - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))


@pytest.mark.parametrize(("n", "lost", "won"), [(50, 2, 12), (400, 12, 5), (1000, 60, 40)])
def test_bounds_solve_the_score_equation(n: int, lost: int, won: int) -> None:
    outcome = PairedOutcome(n, lost, won)
    interval = paired_interval(outcome)
    assert restricted_score(outcome, interval.low) == pytest.approx(1.959964, abs=1e-4)
    assert restricted_score(outcome, interval.high) == pytest.approx(-1.959964, abs=1e-4)


@given(outcomes())
def test_interval_contains_the_estimate(outcome: PairedOutcome) -> None:
    interval = paired_interval(outcome)
    assert -1 <= interval.low <= outcome.delta <= interval.high <= 1
    assert interval.low < interval.high


@given(outcomes())
def test_interval_is_antisymmetric(outcome: PairedOutcome) -> None:
    there = paired_interval(outcome)
    back = paired_interval(PairedOutcome(outcome.n, outcome.won, outcome.lost))
    assert back.low == pytest.approx(-there.high, abs=1e-9)
    assert back.high == pytest.approx(-there.low, abs=1e-9)


@given(outcomes())
def test_one_sided_bounds_are_inside_the_interval(outcome: PairedOutcome) -> None:
    outer, inner = paired_interval(outcome), one_sided_bounds(outcome)
    assert outer.low <= inner.low <= inner.high <= outer.high


@given(outcomes(), st.integers(2, 5))
def test_more_of_the_same_narrows_the_interval(outcome: PairedOutcome, times: int) -> None:
    more = PairedOutcome(outcome.n * times, outcome.lost * times, outcome.won * times)
    narrow, wide = paired_interval(more), paired_interval(outcome)
    assert narrow.high - narrow.low < wide.high - wide.low


def test_interval_has_its_coverage() -> None:
    rng = np.random.default_rng(0)
    lost, won, n, trials = 0.06, 0.03, 400, 1000
    counts = rng.multinomial(n, [lost, won, 1 - lost - won], size=trials)
    hits = 0
    for (b, c), repeats in Counter((int(row[0]), int(row[1])) for row in counts).items():
        interval = paired_interval(PairedOutcome(n, b, c))
        hits += repeats * (interval.low <= won - lost <= interval.high)
    assert 0.93 <= hits / trials <= 0.97


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-1.9, 0.5, Verdict.PASS),
        (-2.0, 0.5, Verdict.INCONCLUSIVE),
        (-5.0, -2.0, Verdict.INCONCLUSIVE),
        (-5.0, -2.1, Verdict.FAIL),
        (0.3, 1.0, Verdict.PASS),
    ],
)
def test_verdict(low: float, high: float, verdict: Verdict) -> None:
    assert judge(Interval(low, high), 2.0) is verdict


@pytest.mark.parametrize("margin", [-1.0, math.nan])
def test_margin_must_not_be_negative(margin: float) -> None:
    with pytest.raises(ValueError, match=f"margin is {margin}"):
        judge(Interval(0, 1), margin)


def test_largest_drop_that_passes_a_two_point_margin() -> None:
    # 1164 questions of which 5 % change: a loss of 0.9 points passes, 1.0 does not.
    verdicts = {}
    for net in (10, 12):
        outcome = PairedOutcome(1164, 29 + net // 2, 29 - net // 2)
        verdicts[net] = judge(one_sided_bounds(outcome), 0.02)
    assert verdicts == {10: Verdict.PASS, 12: Verdict.INCONCLUSIVE}


def test_combined_verdicts() -> None:
    p, i, f = Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.FAIL
    assert combine_verdicts([p, p]) is p
    assert combine_verdicts([p, i]) is i
    assert combine_verdicts([p, i, f]) is f
    assert combine_verdicts([]) is i


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=50))
def test_counting(pairs: list[tuple[bool, bool]]) -> None:
    outcome = count_outcomes([b for b, _ in pairs], [c for _, c in pairs])
    mean = (sum(c for _, c in pairs) - sum(b for b, _ in pairs)) / len(pairs)
    assert outcome.delta == pytest.approx(mean)


def test_parts_of_a_point_are_summed() -> None:
    outcome = count_outcomes([1.0, 0.5, 0.0, 0.75], [0.5, 1.0, 0.0, 0.0])
    assert outcome == PairedOutcome(4, lost=1.25, won=0.5, moved=(2, 1))
    assert outcome.delta == -0.1875
    assert mcnemar(outcome) == 1.0  # the sign test of one of three
    assert count_outcomes([1.0, 0.0], [0.0, 0.0]) == PairedOutcome(2, 1, 0)


@pytest.mark.parametrize("seed", range(5))
def test_interval_of_parts_of_a_point_is_at_least_that_of_the_mean(seed: int) -> None:
    rng = np.random.default_rng(seed)
    base = np.where(rng.random(500) < 0.1, 0, rng.uniform(0.5, 1, 500))
    candidate = np.where(rng.random(500) < 0.1, rng.uniform(0.5, 1, 500), base)
    outcome = count_outcomes(base.tolist(), candidate.tolist())
    gains = candidate - base
    interval = paired_interval(outcome)
    assert outcome.delta == pytest.approx(gains.mean())
    half = 1.96 * gains.std(ddof=1) / math.sqrt(500)
    assert interval.high - interval.low >= 2 * half


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 base and 1 candidate"):
        count_outcomes([True, False], [True])
    with pytest.raises(ValueError, match="3 lost and 2 won of 4"):
        PairedOutcome(4, 3, 2)


def test_mean_interval_is_near_the_normal_one_and_seeded() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 500)
    interval = mean_interval(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(500)
    assert interval.low == pytest.approx(values.mean() - half, abs=0.01)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.01)
    assert interval == mean_interval(values)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=40))
def test_mean_interval_is_within_the_values(values: list[float]) -> None:
    interval = mean_interval(values)
    assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9


def test_mean_interval_of_hardly_different_values() -> None:
    interval = mean_interval([0.0, 1.3398825728639538e-206])
    assert 0 <= interval.low <= interval.high <= 1.34e-206


def test_mean_interval_of_equal_values_and_too_few() -> None:
    assert mean_interval([0.5, 0.5, 0.5]) == Interval(0.5, 0.5)
    with pytest.raises(ValueError, match="1 values"):
        mean_interval([1.0])
