"""The best choices within budgets, and what is said of budgets that are too small."""

from __future__ import annotations

import re
from itertools import product

import pytest
from tiny_models import make_tiny_config

from vlpress.quant.search.budget import Budget, find_best
from vlpress.quant.search.knapsack import add_up
from vlpress.quant.search.sizes import parse_size
from vlpress.quant.search.space import SearchSpace


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    config = make_tiny_config(
        dtype="bfloat16", tied=True, text={"num_hidden_layers": 1}, vision={"depth": 1}
    )
    return SearchSpace.of(config)


def losses(space: SearchSpace) -> list[list[float]]:
    """More bits have less loss, by a factor that differs from group to group."""
    table = []
    for number, group in enumerate(space.groups):
        factor = 1 + number * 7 % 5
        table.append(
            [
                sum(factor * 4.0**-scheme.bits for scheme in choice.schemes if scheme)
                for choice in group.choices
            ]
        )
    return table


def test_the_solution_is_the_best_of_all_combinations(space: SearchSpace) -> None:
    table, smallest = losses(space), find_best(space, sizes(space), Budget()).bytes
    budget = Budget(bytes=smallest + 20_000)
    best = min(
        loss
        for padding in ((), space.padding)
        for loss in within(space, table, padding, budget.bytes or 0)
    )
    solution = find_best(space, table, budget)
    assert solution.loss == pytest.approx(best, rel=1e-6)
    assert smallest < solution.bytes <= smallest + 20_000


def sizes(space: SearchSpace) -> list[list[float]]:
    """The bytes with all paddings as losses: their least sum is the smallest checkpoint."""
    return [[float(size or 0) for size in group] for group in space.choice_bytes(space.padding)]


def within(
    space: SearchSpace, table: list[list[float]], padding: tuple[object, ...], limit: int
) -> list[float]:
    """Losses of all combinations within a limit; groups without an effect on it are fixed."""
    counted = space.choice_bytes(padding)  # type: ignore[arg-type]
    # Dynamic programming over bytes, exact: all sums of bytes with their smallest loss.
    states = {space.fixed_bytes: 0.0}
    for group, costs in zip(table, counted, strict=True):
        following: dict[int, float] = {}
        for (used, loss), (own, cost) in product(states.items(), zip(group, costs, strict=True)):
            if cost is not None and used + cost <= limit:
                following[used + cost] = min(following.get(used + cost, 9e9), loss + own)
        states = following
    return list(states.values())


def test_bits_limit_the_decoder_alone(space: SearchSpace) -> None:
    solution = find_best(space, losses(space), Budget(bits=4.2))
    assert solution.bits <= 4.2
    chosen = dict(zip((g.part for g in space.groups), solution.choices(space), strict=True))
    assert chosen["embedding"].is_tied and chosen["tower"].label == "float"
    assert find_best(space, losses(space), Budget(bits=9)).bits > 8


def test_both_budgets_hold_together(space: SearchSpace) -> None:
    by_bits = find_best(space, losses(space), Budget(bits=4.2))
    limit = by_bits.bytes - 50_000
    both = find_best(space, losses(space), Budget(bytes=limit, bits=4.2))
    assert both.bytes <= limit and both.bits <= 4.2 and both.loss > by_bits.loss


def test_latencies_are_limited(space: SearchSpace) -> None:
    times = [[0.1 * (1 + index) for index, _ in enumerate(g.choices)] for g in space.groups]
    slow = find_best(space, losses(space), Budget(bits=9), times)
    limit = (slow.milliseconds or 0) - 0.35
    fast = find_best(space, losses(space), Budget(bits=9, milliseconds=limit), times)
    assert (fast.milliseconds or 0) <= limit and fast.loss > slow.loss
    assert fast.milliseconds == pytest.approx(add_up(times, fast.chosen))


def test_a_budget_that_is_too_small_names_the_smallest(space: SearchSpace) -> None:
    with pytest.raises(ValueError, match="--budget 1000 bytes is too small") as error:
        find_best(space, losses(space), Budget(bytes=1000))
    match = re.search(r"checkpoint has (\d+) \(", str(error.value))
    assert match is not None
    smallest = int(match[1])
    assert find_best(space, losses(space), Budget(bytes=smallest)).bytes == smallest
    with pytest.raises(ValueError, match="too small"):
        find_best(space, losses(space), Budget(bytes=smallest - 1))


def test_bits_that_are_too_few_name_the_fewest(space: SearchSpace) -> None:
    with pytest.raises(ValueError, match=r"--bits 2 is too few.* (2\.\d{4}),") as error:
        find_best(space, losses(space), Budget(bits=2.0))
    match = re.search(r"average is (\d\.\d{4}),", str(error.value))
    assert match is not None
    assert find_best(space, losses(space), Budget(bits=float(match[1]))).bits > 2.5


def test_a_latency_that_is_too_low_names_the_lowest(space: SearchSpace) -> None:
    # The first choice is the smallest, and the slowest.
    times = [
        [2.0 - index / len(g.choices) for index, _ in enumerate(g.choices)] for g in space.groups
    ]
    lowest = sum(min(group) for group in times)
    with pytest.raises(ValueError, match="--latency 1 is too low; the smallest possible") as error:
        find_best(space, losses(space), Budget(bits=9, milliseconds=1.0), times)
    match = re.search(r"is (\d+\.\d{3}) ms", str(error.value))
    assert match is not None and float(match[1]) == pytest.approx(lowest, abs=1.1e-3)
    fastest = find_best(space, losses(space), Budget(bits=9, milliseconds=float(match[1])), times)
    assert fastest.milliseconds == pytest.approx(lowest)
    few = find_best(space, losses(space), Budget(bits=9)).bytes - 300_000
    with pytest.raises(ValueError, match="smallest possible within the other limits is"):
        find_best(space, losses(space), Budget(bytes=few, milliseconds=lowest + 1e-6), times)


def test_sizes_have_decimal_and_binary_units() -> None:
    sizes = {"2.4GB": 2_400_000_000, "900MiB": 900 * 2**20, "12345": 12345, "1.5 kB": 1500, "7B": 7}
    assert {text: parse_size(text) for text in sizes} == sizes
    for wrong in ("2.4XB", "GB", "-1GB", "1e9", ""):
        with pytest.raises(ValueError, match=r"size .* allowed: .*2\.4GB"):
            parse_size(wrong)
