from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.eval.stats.multiple_testing import benjamini_hochberg, detectable_difference, holm
from vlpress.eval.stats.statistics import PairedOutcome, mcnemar

P_VALUES = st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8)


def test_holm_by_hand() -> None:
    adjusted = holm({"a": 0.01, "b": 0.04, "c": 0.03})
    assert adjusted == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_benjamini_hochberg_by_hand() -> None:
    adjusted = benjamini_hochberg({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert adjusted == pytest.approx({"a": 0.04, "b": 0.16 / 3, "c": 0.16 / 3, "d": 0.5})


@settings(max_examples=10, deadline=None)
@given(P_VALUES)
def test_adjusted_values_are_not_smaller_and_keep_their_order(p_values: dict[str, float]) -> None:
    strict, share = holm(p_values), benjamini_hochberg(p_values)
    assert set(strict) == set(share) == set(p_values)
    for name, p in p_values.items():
        assert p <= share[name] + 1e-12 <= strict[name] + 1e-9 <= 1 + 1e-9
        assert all(strict[name] <= strict[o] + 1e-12 for o, q in p_values.items() if p <= q)


@pytest.mark.parametrize(
    ("n", "share", "points"),
    [
        (1164, 0.02, 1.16),
        (1164, 0.05, 1.84),
        (1164, 0.10, 2.60),
        (1164, 0.15, 3.18),
        (1000, 0.05, 1.98),
        (1000, 0.10, 2.80),
        (900, 0.05, 2.09),
        (900, 0.10, 2.95),
    ],
)
def test_detectable_differences_of_the_published_benchmarks(
    n: int, share: float, points: float
) -> None:
    outcome = PairedOutcome(n, round(n * share), 0)
    assert 100 * detectable_difference(outcome) == pytest.approx(points, abs=0.02)


def test_without_any_difference_one_is_assumed() -> None:
    none, one = (detectable_difference(PairedOutcome(100, lost, 0)) for lost in (0, 1))
    assert none == one > 0


def test_the_detectable_difference_is_detected_four_times_in_five() -> None:
    n, discordance = 1000, 0.1
    delta = detectable_difference(PairedOutcome(n, 100, 0))
    rng = np.random.default_rng(3)
    chances = [(discordance + delta) / 2, (discordance - delta) / 2, 1 - discordance]
    lost, won, _ = rng.multinomial(n, chances, size=2000).T
    counts = list(zip(lost.tolist(), won.tolist(), strict=True))
    p_values = {(b, c): mcnemar(PairedOutcome(n, b, c)) for b, c in set(counts)}
    power = np.mean([p_values[pair] < 0.05 for pair in counts])
    # The exact test is a little less powerful than the normal approximation of 80 %.
    assert 0.72 <= power <= 0.82
