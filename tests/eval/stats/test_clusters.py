from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.stats.clusters import components, design_effect
from vlpress.eval.stats.statistics import PairedOutcome, one_sided_bounds, paired_interval


def test_units_that_share_a_key_are_one_cluster() -> None:
    assert components(["ab", "c", "bd", "", "d"]) == [0, 1, 0, 3, 0]
    assert components(["a", "b", "c", "ab", "bc"]) == [0, 0, 0, 0, 0]
    assert components([]) == []


@given(st.lists(st.frozensets(st.sampled_from("abcdef"), max_size=3), max_size=12))
def test_clusters_are_closed_and_no_larger(keys: list[frozenset[str]]) -> None:
    clusters = components(keys)
    for i, left in enumerate(keys):
        assert all(clusters[i] == clusters[j] for j, right in enumerate(keys) if left & right)
        assert clusters[clusters[i]] == clusters[i] <= i
    owners = {key: clusters[i] for i, unit_keys in enumerate(keys) for key in unit_keys}
    for cluster in set(clusters):
        members = [k for i, k in enumerate(keys) if clusters[i] == cluster]
        assert len(members) == 1 or all(k for k in members)
        assert all(owners[key] == cluster for unit_keys in members for key in unit_keys)


def test_separate_units_have_no_effect() -> None:
    assert design_effect([1, 0, -1, 0], "abcd") == 1.0


def test_copies_count_once() -> None:
    rng = np.random.default_rng(0)
    values = [float(value) for value in rng.integers(-1, 2, 200)]
    doubled = [value for value in values for _ in range(2)]
    names = [unit // 2 for unit in range(400)]
    # 200 / 199: the variance between clusters is estimated with one degree of freedom less.
    assert design_effect(doubled, names) == pytest.approx(2 * 200 / 199)


def test_uncorrelated_units_of_a_cluster_have_little_effect() -> None:
    values = np.random.default_rng(1).integers(-1, 2, 4000).tolist()
    assert design_effect(values, [unit // 2 for unit in range(4000)]) == pytest.approx(1.0, abs=0.1)


def test_without_any_difference_clusters_count_as_one() -> None:
    assert design_effect([0] * 6, "aabbcc") == 2.0
    assert design_effect([0] * 6, "abbccc") == 2.0


@given(st.integers(2, 400), st.integers(0, 40), st.integers(0, 40), st.floats(1, 8))
def test_the_effect_is_that_of_fewer_units(n: int, lost: int, won: int, effect: float) -> None:
    lost, won = min(lost, n // 2), min(won, n // 2)
    wide = paired_interval(PairedOutcome(n, lost, won), design_effect=effect)
    narrow = paired_interval(PairedOutcome(n, lost, won))
    assert wide.low <= narrow.low + 1e-9
    assert wide.high >= narrow.high - 1e-9
    if effect == int(effect):
        times = int(effect)
        many = PairedOutcome(n * times, lost * times, won * times)
        assert paired_interval(many, design_effect=effect).low == pytest.approx(narrow.low)


def test_unusable_clusters() -> None:
    with pytest.raises(ValueError, match="2 values and 1 clusters"):
        design_effect([1, 0], "a")


def draw(
    rng: np.random.Generator, clusters: int, discordance: float, delta: float, correlated: float
) -> list[int]:
    """Differences of pairs of units, a share of which have the same outcome."""
    u = rng.random((clusters, 2))
    same = rng.random(clusters) < correlated
    u[same] = u[same][:, :1]
    lost, won = (discordance - delta) / 2, (discordance + delta) / 2
    outcomes: list[int] = np.where(u < lost, -1, np.where(u < lost + won, 1, 0)).ravel().tolist()
    return outcomes


@pytest.mark.parametrize("clusters", [50, 400])
@pytest.mark.parametrize(("discordance", "delta"), [(0.0, 0.0), (0.02, -0.01), (0.1, -0.02)])
@pytest.mark.parametrize("correlated", [0.0, 0.9])
def test_a_lower_bound_is_right_nineteen_times_in_twenty(
    clusters: int, discordance: float, delta: float, correlated: float
) -> None:
    rng = np.random.default_rng(7)
    bounds: dict[tuple[int, int, float], float] = {}
    trials, right = 600, 0
    for _ in range(trials):
        values = draw(rng, clusters, discordance, delta, correlated)
        effect = design_effect(values, [unit // 2 for unit in range(2 * clusters)])
        lost, won = values.count(-1), values.count(1)
        key = (lost, won, round(effect, 6))
        if key not in bounds:
            outcome = PairedOutcome(len(values), lost, won)
            bounds[key] = one_sided_bounds(outcome, design_effect=effect).low
        right += bounds[key] <= delta
    # 0.93: two standard errors of 600 trials below 0.95.
    assert right / trials >= 0.93
