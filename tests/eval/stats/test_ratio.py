from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.eval.stats.ratio import LEAST_CLUSTERS, ratio_interval


def test_a_constant_ratio_has_no_width() -> None:
    base = [float(n) for n in range(1, 21)]
    interval = ratio_interval(base, [1.5 * value for value in base], range(20))
    assert interval is not None and interval.low == interval.high == pytest.approx(1.5)


def test_the_width_is_that_of_the_linearized_ratio() -> None:
    rng = np.random.default_rng(0)
    base = rng.gamma(4, 50, 400)
    candidate = base * rng.lognormal(0.2, 0.4, 400)
    interval = ratio_interval(base.tolist(), candidate.tolist(), range(400))
    ratio = candidate.sum() / base.sum()
    error = (candidate - ratio * base).std(ddof=1) / (np.sqrt(400) * base.mean())
    assert interval is not None
    assert interval.low == pytest.approx(ratio - 1.96 * error, abs=0.25 * error)
    assert interval.high == pytest.approx(ratio + 1.96 * error, abs=0.25 * error)


def test_copies_of_a_unit_within_a_cluster_bring_nothing() -> None:
    rng = np.random.default_rng(1)
    base, candidate = rng.gamma(4, 50, 40).tolist(), rng.gamma(4, 60, 40).tolist()
    once = ratio_interval(base, candidate, range(40))
    twice = ratio_interval(base * 2, candidate * 2, [*range(40)] * 2)
    apart = ratio_interval(base * 2, candidate * 2, range(80))
    assert once is not None and twice is not None and apart is not None
    assert (once.low, once.high) == pytest.approx((twice.low, twice.high))
    assert apart.high - apart.low < 0.85 * (once.high - once.low)


def test_without_an_interval() -> None:
    few = [1.0] * (LEAST_CLUSTERS - 1)
    assert ratio_interval(few, few, range(len(few))) is None
    assert ratio_interval([*few, 1.0], [*few, 1.0], "a" * 10) is None
    assert ratio_interval([0.0] * 20, [1.0] * 20, range(20)) is None
    with pytest.raises(ValueError, match="2 values and 1 clusters"):
        ratio_interval([1, 2], [1, 2], "a")


@settings(max_examples=10)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=10, max_size=15))
def test_an_interval_is_finite_or_absent(pairs: list[tuple[int, int]]) -> None:
    base, candidate = [float(b) for b, _ in pairs], [float(c) for _, c in pairs]
    interval = ratio_interval(base, candidate, range(len(pairs)))
    if interval is not None:
        assert 0 <= interval.low <= interval.high < np.inf


@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_an_interval_covers_the_true_ratio(ratio: float) -> None:
    rng = np.random.default_rng(2)
    trials, right = 60, 0
    for _ in range(trials):
        base = rng.gamma(2, 100, 60)
        candidate = ratio * base * rng.lognormal(-0.125, 0.5, 60)  # mean 1
        interval = ratio_interval(base.tolist(), candidate.tolist(), range(60))
        right += interval is not None and interval.low <= ratio <= interval.high
    assert right / trials >= 0.86  # three standard errors of 60 trials below 0.95
