"""Budgets of a search, and the best choices within them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from ..driver.padding import Padding
from .knapsack import InfeasibleError, Resource, Table, add_up, choose, least
from .space import Choice, SearchSpace


@dataclass(frozen=True)
class Budget:
    """Limits of a checkpoint; None = no limit."""

    bytes: int | None = None
    """Of all tensors."""
    bits: float | None = None
    """Stored bits per decoder weight, with scales."""
    milliseconds: float | None = None
    """Per generated token, in the linear layers of decoder and head."""
    keep: float | None = None
    """Share of the decoder's weights that masks do not hold at zero."""


@dataclass(frozen=True)
class Solution:
    """The best choices within a budget."""

    chosen: tuple[int, ...]
    """Number of the choice of each group."""
    padding: tuple[Padding, ...]
    """Widths that are padded."""
    loss: float
    """Predicted, in nats per predicted token."""
    bytes: int
    bits: float
    milliseconds: float | None
    """None: no latencies are known."""
    kept: float
    """Share of the decoder's weights that masks do not hold at zero."""

    def choices(self, space: SearchSpace) -> list[Choice]:
        """Return the choice of each group."""
        return [g.choices[c] for g, c in zip(space.groups, self.chosen, strict=True)]


def find_best(
    space: SearchSpace,
    losses: Table,
    budget: Budget,
    milliseconds: Table | None = None,
) -> Solution:
    """Find the choices with the smallest sum of losses within a budget.

    A width that is padded is padded in all blocks, so that a float layer next to a quantized one
    grows too: every set of paddings is solved on its own.

    Args:
        space: groups and choices.
        losses: of every choice of every group.
        budget: the limits.
        milliseconds: of every choice of every group; needed for a limit on them.

    Raises:
        ValueError: nothing is within the budget; the message has the smallest possible value.
    """
    cases = [_Case(space, padding, milliseconds) for padding in _subsets(space.padding)]
    cases = [case for case in cases if case.is_possible]
    solutions = []
    for case in cases:
        try:
            solutions.append(case.solve(losses, budget))
        except InfeasibleError:
            continue
    if not solutions:
        raise ValueError(_explain(cases, budget))
    return min(solutions, key=lambda solution: (solution.loss, solution.bytes))


class _Case:
    """The search space with some widths padded."""

    def __init__(
        self, space: SearchSpace, padding: tuple[Padding, ...], milliseconds: Table | None
    ) -> None:
        sizes = space.choice_bytes(padding)
        bits, self.weights = space.decoder_bits()
        self.space, self.padding = space, padding
        self.allowed = [[i for i, size in enumerate(group) if size is not None] for group in sizes]
        self.bytes = [[size for size in group if size is not None] for group in sizes]
        self.bits = self.select(bits)
        self.kept = self.select(space.kept_weights())
        self.milliseconds = None if milliseconds is None else self.select(milliseconds)

    @property
    def is_possible(self) -> bool:
        """Whether every group has a choice."""
        return all(self.allowed)

    def select(self, table: Table) -> Table:
        """Return the entries of the choices that this padding allows."""
        return [[group[i] for i in kept] for group, kept in zip(table, self.allowed, strict=True)]

    def resources(self, budget: Budget) -> dict[str, Resource]:
        """Return the limited resources by name."""
        limited = {}
        if budget.bytes is not None:
            limited["bytes"] = Resource(self.bytes, budget.bytes - self.space.fixed_bytes)
        if budget.bits is not None:
            limited["bits"] = Resource(self.bits, int(budget.bits * self.weights))
        if budget.keep is not None:
            limited["keep"] = Resource(self.kept, int(budget.keep * self.weights))
        if budget.milliseconds is not None:
            assert self.milliseconds is not None
            limited["milliseconds"] = Resource(self.milliseconds, budget.milliseconds)
        return limited

    def solve(self, losses: Table, budget: Budget) -> Solution:
        """Find the best choices of this case."""
        own = self.select(losses)
        picked = choose(own, list(self.resources(budget).values()))
        times = None if self.milliseconds is None else add_up(self.milliseconds, picked)
        return Solution(
            tuple(kept[i] for kept, i in zip(self.allowed, picked, strict=True)),
            self.padding,
            add_up(own, picked),
            int(add_up(self.bytes, picked)) + self.space.fixed_bytes,
            add_up(self.bits, picked) / self.weights,
            times,
            add_up(self.kept, picked) / self.weights,
        )


def _subsets(padding: tuple[Padding, ...]) -> Iterator[tuple[Padding, ...]]:
    for count in range(len(padding) + 1):
        yield from combinations(padding, count)


def _explain(cases: Sequence[_Case], budget: Budget) -> str:
    """Say which limit is too low, and the smallest possible value."""
    if not cases:
        return "no scheme of the search fits all layers of the decoder; give a recipe instead"
    limits = {name: each.limit for name, each in cases[0].resources(budget).items()}
    for name, limit in limits.items():
        smallest = min(least(case.resources(budget)[name].costs) for case in cases)
        if smallest > limit:
            return _too_low(cases[0], name, smallest, budget)
    others = " within the other limits"
    return _too_low(cases[0], "milliseconds", _least_time(cases, budget), budget, others)


def _least_time(cases: Sequence[_Case], budget: Budget) -> float:
    times = []
    for case in cases:
        resources = case.resources(budget)
        own = resources.pop("milliseconds").costs
        try:
            times.append(least(own, list(resources.values())))
        except InfeasibleError:
            continue
    return min(times)


def _too_low(case: _Case, name: str, smallest: float, budget: Budget, when: str = "") -> str:
    if name == "bytes":
        total = int(smallest) + case.space.fixed_bytes
        return (
            f"--budget {budget.bytes} bytes is too small for this model; the smallest possible "
            f"checkpoint has {total} ({total / 1e9:.4g} GB); give at least that"
        )
    if name == "bits":
        bits = smallest / case.weights
        return (
            f"--bits {budget.bits:g} is too few; the smallest possible average is "
            f"{bits + 5e-5:.4f}, scales included; give at least that"
        )
    if name == "keep":
        return (
            f"--keep {budget.keep:g} is too low; the smallest possible share of kept weights is "
            f"{smallest / case.weights:.4f}; give at least that"
        )
    return (
        f"--latency {budget.milliseconds:g} is too low; the smallest possible{when} is "
        f"{smallest + 5e-4:.3f} ms per generated token on this machine; give at least that"
    )
