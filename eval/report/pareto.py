"""Which of several choices are worth considering: those that no other one beats."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(costs: Sequence[tuple[float, float]]) -> list[int]:
    """Places of the choices that are not dominated.

    A choice is dominated if another one is at most as large in both costs and smaller in one;
    equal choices stand together.

    Args:
        costs: two costs of each choice, to be made small: turn a gain into its negative.

    Returns:
        Indices in the order of the first cost.

    Example:
        >>> pareto_front([(2, 1), (1, 3), (3, 1), (2, 2)])
        [1, 0]
    """
    order = sorted(range(len(costs)), key=lambda place: costs[place])
    front: list[int] = []
    for place in order:
        if not front or costs[place][1] < costs[front[-1]][1] or costs[place] == costs[front[-1]]:
            front.append(place)
    return front
