"""The multiple-choice knapsack against all combinations."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.quant.search.knapsack import InfeasibleError, Resource, Table, add_up, choose, least


def brute_force(losses: Table, resources: list[Resource]) -> float | None:
    within = [
        add_up(losses, choice)
        for choice in product(*(range(len(group)) for group in losses))
        if all(resource.total(choice) <= resource.limit for resource in resources)
    ]
    return min(within, default=None)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Table, list[Resource]]:
    """Up to five groups of up to four options, with losses over ten decades and two resources."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))
    exponents = st.floats(-9, 1)

    def table(values: st.SearchStrategy[float]) -> list[list[float]]:
        return [draw(st.lists(values, min_size=n, max_size=n)) for n in sizes]

    losses = [[10**exponent for exponent in group] for group in table(exponents)]
    sizes_in_bytes = table(st.integers(0, 10 ** draw(st.integers(1, 10))))
    times = table(st.floats(0, 1, allow_subnormal=False))
    share, of_time = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    largest = sum(max(group) for group in sizes_in_bytes)
    slowest = sum(max(group) for group in times)
    return losses, [
        Resource(sizes_in_bytes, int(share * largest)),
        Resource(times, of_time * slowest),
    ]


@settings(max_examples=60)
@given(problems())
def test_the_choice_is_the_best_of_all(problem: tuple[Table, list[Resource]]) -> None:
    losses, resources = problem
    best = brute_force(losses, resources)
    if best is None:
        with pytest.raises(InfeasibleError):
            choose(losses, resources)
        return
    choice = choose(losses, resources)
    assert all(resource.total(choice) <= resource.limit for resource in resources)
    assert add_up(losses, choice) <= best * (1 + 1e-6)


@settings(max_examples=30)
@given(problems())
def test_the_least_costs_are_the_smallest_of_all(problem: tuple[Table, list[Resource]]) -> None:
    _, (sizes, times) = problem
    assert least(sizes.costs) == sum(min(group) for group in sizes.costs)
    best = brute_force(sizes.costs, [times])
    if best is not None:
        assert least(sizes.costs, [times]) == pytest.approx(best, rel=1e-6)


def test_a_limit_is_kept_to_the_byte() -> None:
    losses = [[1.0, 0.0], [1.0, 0.0]]
    sizes = [[10**10, 10**10 + 1], [7, 2 * 10**10]]
    assert choose(losses, [Resource(sizes, 10**10 + 7)]) == (0, 0)
    assert choose(losses, [Resource(sizes, 10**10 + 8)]) == (1, 0)
    with pytest.raises(InfeasibleError):
        choose(losses, [Resource(sizes, 10**10 + 6)])


def test_losses_far_below_the_largest_are_told_apart() -> None:
    # A solver's absolute tolerance must not hide the last two groups.
    losses = [[1e3, 0.0], [3e-9, 1e-9], [2e-9, 1e-9]]
    sizes = [[0, 5], [0, 5], [0, 5]]
    assert choose(losses, [Resource(sizes, 10)]) == (1, 1, 0)


def test_without_limits_every_group_has_its_best_option() -> None:
    assert choose([[3.0, 1.0, 2.0], [0.0]], []) == (1, 0)
    assert choose([], []) == ()


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="group 1 has no option"):
        choose([[1.0], []], [])
    with pytest.raises(ValueError, match="differ in their groups or options"):
        choose([[1.0, 2.0]], [Resource([[1]], 3)])
