"""Whether layers divide into the groups that their scheme asks for, and which would fit."""

from collections.abc import Sequence

from ...model.families import LinearSpec
from ..recipe.scheme import QuantScheme

GROUP_SIZES = (128, 64, 32)
"""What engines' kernels know, from the one with the least overhead on."""


def check_groups(specs: Sequence[LinearSpec], scheme: QuantScheme, tp: int = 1) -> None:
    """Refuse a scheme that does not divide the width of each of these layers.

    Args:
        specs: layers of one step, padded where they will be.
        scheme: of the step.
        tp: devices that engines will split the layers over; the groups of a layer whose input is
            split must not cross from one device to the next.

    Raises:
        ValueError: a width does not divide; the message proposes a group size that fits.
    """
    for spec in specs:
        devices = tp if spec.input_split else 1
        if spec.in_features % devices:
            raise ValueError(
                f"{spec.name}: in_features {spec.in_features} does not split over {tp} devices; "
                "choose a tp that divides it"
            )
        width = spec.in_features // devices
        if width % scheme.width(width):
            each = f" on each of {tp} devices" if devices > 1 else ""
            raise ValueError(
                f"{spec.name}: in_features {width}{each} does not divide into groups of "
                f"{scheme.group_size}; {fitting_group(specs, tp)} fits all layers of this step"
            )


def fitting_group(specs: Sequence[LinearSpec], tp: int = 1) -> str:
    """The largest usual group size that divides the widths of all these layers, in words."""
    for size in GROUP_SIZES:
        if all(spec.in_features % (size * (tp if spec.input_split else 1)) == 0 for spec in specs):
            return f"group_size {size}"
    return "group_size -1 (one scale per output row)"
