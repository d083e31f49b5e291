"""Groups of layers that read the same input: they share one tap and its statistics.

Groups are observed in passes over the samples, see `observation_passes`.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..model.families import LinearSpec
from .statistics import HESSIAN, InputRounding, Statistic, observing_bytes

OBSERVED_BYTES = 2 * 2**30
"""Largest memory of the statistics of the experts that one pass observes. It is a constant, so that
memory depends neither on the number of experts nor on the machine; results do not depend on it."""

Needs = Mapping[str, Collection[Statistic]]
"""Statistics that targets need besides the Hessian, by name of the target."""

Roundings = Mapping[str, InputRounding]
"""How targets round their inputs, by name of the target; the others do not."""


@dataclass(frozen=True)
class TapGroup:
    """Linear layers of one block that read the same tensor."""

    tap: str
    """Name of the shared input in the family table."""
    linears: tuple[LinearSpec, ...]
    expert: int | None = None
    """Number of the expert, whose tap sees the tokens routed to it; None = all tokens."""
    rounding: InputRounding | None = None
    """How the layers round the input; None = they do not."""

    @property
    def in_features(self) -> int:
        """Width of the shared input."""
        return self.linears[0].in_features


def tap_groups(
    targets: Sequence[LinearSpec], block: str, roundings: Roundings | None = None
) -> list[TapGroup]:
    """Group the targets inside a block by shared input, in the order of computation.

    Args:
        targets: of a model, in the order of computation.
        block: module path of the block.
        roundings: see `group_by_input`.
    """
    prefix = f"{block}."
    inside = [s for s in targets if s.name == block or s.name.startswith(prefix)]
    return group_by_input(inside, roundings)


def group_by_input(
    targets: Sequence[LinearSpec], roundings: Roundings | None = None
) -> list[TapGroup]:
    """Group targets of one block by shared input, in their order.

    Args:
        targets: of the block.
        roundings: layers that round an input differently are in different groups.
    """
    groups: dict[tuple[str, int | None, InputRounding | None], list[LinearSpec]] = {}
    for spec in targets:
        rounding = (roundings or {}).get(spec.name)
        groups.setdefault((spec.tap, spec.expert, rounding), []).append(spec)
    return [
        TapGroup(tap, tuple(specs), expert, rounding)
        for (tap, expert, rounding), specs in groups.items()
    ]


def group_needs(group: TapGroup, needs: Needs) -> tuple[Statistic, ...]:
    """List the statistics of a group with an observer of their own, without the Hessian."""
    all_needs = {statistic for spec in group.linears for statistic in needs.get(spec.name, ())}
    own = (s for s in all_needs if s.observer is not None and s != HESSIAN)
    return tuple(sorted(own, key=lambda statistic: statistic.name))  # equal on all ranks


def needs_float(group: TapGroup, needs: Needs) -> bool:
    """Whether a statistic of the group compares inputs with those of the float model."""
    return any(statistic.from_float_model for statistic in group_needs(group, needs))


def group_bytes(group: TapGroup, needs: Needs) -> int:
    """Count the bytes of the statistics of a group while samples run."""
    return observing_bytes(group.in_features, group_needs(group, needs))


def observation_passes(
    groups: Sequence[TapGroup], needs: Needs, *, true_sequential: bool
) -> Iterator[list[TapGroup]]:
    """Split the groups of a block into those that one pass of the samples observes.

    With `true_sequential` a pass is for one tap and one rounding of it, otherwise for all of them.
    Experts are split further: the inputs of one depend on no other expert, so that each can be
    replaced before others of its layer are observed, and a pass takes as many as `OBSERVED_BYTES`
    holds, at least one.

    Args:
        groups: of the block, in the order of computation.
        needs: statistics besides the Hessian, by target.
        true_sequential: see `CalibrationBlock.statistics`.

    Yields:
        The groups of a pass in the order of computation. Passes are in this order too, except that
        without `true_sequential` the layers before the experts come last: the inputs of experts
        depend on them, and theirs on no expert.
    """
    taps = groupby(groups, key=lambda group: (group.tap, group.rounding))
    for of_pass in [list(of_tap) for _, of_tap in taps] if true_sequential else [groups]:
        yield from _split(of_pass, needs)


def _split(groups: Sequence[TapGroup], needs: Needs) -> Iterator[list[TapGroup]]:
    """Split the groups of one pass by experts, within `OBSERVED_BYTES`."""
    units: dict[int | None, list[int]] = {}
    for position, group in enumerate(groups):
        units.setdefault(group.expert, []).append(position)
    last = [units.pop(None)] if None in units else []
    positions: list[int] = []
    total = 0
    for unit in [*units.values(), *last]:
        size = sum(group_bytes(groups[position], needs) for position in unit)
        if positions and total + size > OBSERVED_BYTES:
            yield [groups[position] for position in sorted(positions)]
            positions, total = [], 0
        positions, total = positions + unit, total + size
    if positions:
        yield [groups[position] for position in sorted(positions)]
