"""Groups of layers that read the same input: they share one tap and its statistics."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from ..model.families import LinearSpec


@dataclass(frozen=True)
class TapGroup:
    """Linear layers of one block that read the same tensor."""

    block: str
    """Module path, such as `model.layers.3`."""
    tap: str
    """Name of the shared input in the family table."""
    linears: tuple[LinearSpec, ...]
    expert: int | None = None
    """Number of the expert, whose tap sees the tokens routed to it; None = all tokens."""

    @property
    def in_features(self) -> int:
        """Width of the shared input."""
        return self.linears[0].in_features


def tap_groups(targets: Sequence[LinearSpec], block: str) -> list[TapGroup]:
    """Group the targets inside a block by shared input, in the order of computation."""
    groups: dict[tuple[str, int | None], list[LinearSpec]] = {}
    for spec in targets:
        if spec.name == block or spec.name.startswith(block + "."):
            groups.setdefault((spec.tap, spec.expert), []).append(spec)
    return [TapGroup(block, tap, tuple(specs), expert) for (tap, expert), specs in groups.items()]


def by_tap(groups: Sequence[TapGroup]) -> list[list[TapGroup]]:
    """Join the groups that are observed in one pass: those of all experts at a tap."""
    return [list(of_tap) for _, of_tap in groupby(groups, key=lambda group: group.tap)]
