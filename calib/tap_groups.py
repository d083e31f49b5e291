"""Groups of layers that read the same input: they share one tap and its statistics."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..model.families import LinearSpec


@dataclass(frozen=True)
class TapGroup:
    """Linear layers of one block that read the same tensor."""

    block: str
    """Module path, such as `model.layers.3`."""
    tap: str
    """Name of the shared input in the family table."""
    linears: tuple[LinearSpec, ...]

    @property
    def in_features(self) -> int:
        """Width of the shared input."""
        return self.linears[0].in_features


def tap_groups(targets: Sequence[LinearSpec], block: str) -> list[TapGroup]:
    """Group the targets inside a block by shared input, in the order of computation."""
    groups: dict[str, list[LinearSpec]] = {}
    for spec in targets:
        if spec.name == block or spec.name.startswith(block + "."):
            groups.setdefault(spec.tap, []).append(spec)
    return [TapGroup(block, tap, tuple(specs)) for tap, specs in groups.items()]
