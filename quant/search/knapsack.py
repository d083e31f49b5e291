"""Choose one option per group under budgets: the multiple-choice knapsack problem.

Minimize the sum of the losses of the chosen options, one option per group, so that the sum of their
costs of every resource (bytes, milliseconds) stays within its limit. It is solved exactly as an
integer program with HiGHS. MnasNet (Tan et al., arXiv 1807.11626, section 4) and FBNet (Wu et al.,
arXiv 1812.03443, section 3.2) search the same space, one choice per layer with additive look-up
tables of costs, by sampling; with additive losses no sampling is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...common.quiet_stdout import quiet_stdout

ATTEMPTS = 50
"""Solutions of a slightly lower limit that are tried when rounding exceeds the exact one."""

Table = Sequence[Sequence[float]]
"""A number for every option of every group."""


@dataclass(frozen=True)
class Resource:
    """A limited resource."""

    costs: Table
    """Not negative; integers are added exactly."""
    limit: float

    def total(self, choice: Sequence[int]) -> float:
        """Return the costs of one option per group."""
        return add_up(self.costs, choice)


class InfeasibleError(ValueError):
    """No choice is within all limits."""


def choose(losses: Table, resources: Sequence[Resource]) -> tuple[int, ...]:
    """Choose the options with the smallest sum of losses within all limits.

    The sum is within a relative 1e-6 of the smallest one.

    Args:
        losses: finite, not negative, for every option of every group; at least one option each.
        resources: with costs of the same shape.

    Returns:
        The index of the chosen option of each group.

    Raises:
        InfeasibleError: no choice is within all limits.
        ValueError: a group has no option, or tables differ in shape.
    """
    _check(losses, resources)
    if not losses:
        return ()
    lowest = [min(group) for group in losses]
    excess = [[loss - low for loss in group] for group, low in zip(losses, lowest, strict=True)]
    # Solvers compare losses up to an absolute tolerance: the first solution gives the scale of the
    # second, from which all options are left out that exceed it alone.
    best = _feasible(excess, resources, scale=max(map(max, excess)))
    value = add_up(excess, best)
    if value > 0:
        with suppress(InfeasibleError):  # by rounding: the first solution is within all limits
            second = _feasible(excess, resources, scale=value, bound=value)
            best = min((best, second), key=lambda choice: add_up(excess, choice))
    return best


def least(costs: Table, resources: Sequence[Resource] = ()) -> float:
    """Return the smallest sum of costs within the limits of other resources.

    Raises:
        InfeasibleError: no choice is within them.
        ValueError: see `choose`.
    """
    return add_up(costs, choose(costs, resources))


def add_up(table: Table, choice: Sequence[int]) -> float:
    """Return the sum of one entry per group; exact for integers."""
    values = [group[option] for group, option in zip(table, choice, strict=True)]
    return sum(values) if all(isinstance(value, int) for value in values) else math.fsum(values)


def _check(losses: Table, resources: Sequence[Resource]) -> None:
    sizes = [len(group) for group in losses]
    if 0 in sizes:
        raise ValueError(f"group {sizes.index(0)} has no option; give at least one")
    for resource in resources:
        if [len(group) for group in resource.costs] != sizes:
            raise ValueError("losses and costs differ in their groups or options")


def _feasible(
    excess: Table, resources: Sequence[Resource], *, scale: float, bound: float = math.inf
) -> tuple[int, ...]:
    """Solve with limits that are lowered until the solution is within the exact ones."""
    lowered = list(resources)
    for _ in range(ATTEMPTS):
        choice = _solve(excess, lowered, scale or 1.0, bound)
        over = [max(resource.total(choice) - resource.limit, 0.0) for resource in resources]
        if not any(over):
            return choice
        lowered = [
            replace(each, limit=each.limit - by) for each, by in zip(lowered, over, strict=True)
        ]
    raise InfeasibleError("no choice was found within the limits")


def _solve(
    excess: Table, resources: Sequence[Resource], scale: float, bound: float
) -> tuple[int, ...]:
    """Solve the integer program once, in the solver's floating point."""
    # They import scipy, a tenth of a second.
    from scipy.optimize import (  # type: ignore[import-untyped]
        Bounds,
        LinearConstraint,
        milp,
    )
    from scipy.sparse import csr_array  # type: ignore[import-untyped]

    sizes = [len(group) for group in excess]
    total = sum(sizes)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    ones = csr_array((np.ones(total), (groups, np.arange(total))), shape=(len(sizes), total))
    constraints = [LinearConstraint(ones, 1, 1)]
    for resource in resources:
        row, limit = _increments(resource)
        if limit < 0:
            raise InfeasibleError("a limit is below the sum of the smallest costs")
        constraints.append(LinearConstraint(row[None], -np.inf, limit))
    flat = np.array([loss for group in excess for loss in group])
    is_used = flat <= bound * (1 + 1e-9)
    with quiet_stdout():  # HiGHS prints lines for debugging
        result = milp(
            np.where(is_used, flat / scale, 0.0),
            integrality=np.ones(total),
            bounds=Bounds(0, is_used.astype(float)),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
    if result.x is None:
        if result.status == 2:
            raise InfeasibleError("no choice is within all limits")
        raise RuntimeError(f"the integer program was not solved: {result.message}")
    ends = np.cumsum(sizes)[:-1]
    return tuple(int(part.argmax()) for part in np.split(result.x, ends))


def _increments(resource: Resource) -> tuple[NDArray[np.float64], float]:
    """Return the costs above the cheapest option of each group, and the limit above their sum.

    They are small numbers without a common factor if the costs are integers: the solver checks
    limits up to an absolute tolerance.
    """
    least_costs = [min(group) for group in resource.costs]
    rows = [
        [cost - low for cost in group]
        for group, low in zip(resource.costs, least_costs, strict=True)
    ]
    limit = resource.limit - add_up([[low] for low in least_costs], [0] * len(least_costs))
    flat = [cost for group in rows for cost in group]
    if all(isinstance(cost, int) for cost in flat):
        unit: float = math.gcd(*(int(cost) for cost in flat)) or 1
        limit = math.floor(limit / unit) if math.isfinite(limit) else limit
    else:
        unit = max(flat) / 1e3 or 1.0
        limit = limit / unit
    return np.array(flat, dtype=np.float64) / unit, limit
