"""What a quantized number is: bits, grouping, symmetry, and what happens to activations.

A scheme is data. It fixes the grid (how many levels, how many weights share a scale); how the
integers are found (rounding, GPTQ) is the business of the algorithms.
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

Activations = Literal["none", "dynamic", "static"]


@dataclass(frozen=True)
class QuantScheme:
    """The grid that one linear layer is quantized to.

    Integers are stored unsigned, 0 to ``2**bits - 1``; a weight is ``scale * (q - zero_point)``.

    Raises:
        ValueError: a field is out of range.
    """

    bits: int
    """Width of one stored integer, 2 to 8."""
    group_size: int = 128
    """Input features that share a scale; -1 = all of them (one scale per output row)."""
    symmetric: bool = True
    """True: the zero point is fixed at ``2**(bits - 1)``."""
    activations: Activations = "none"
    """Input rounding: none, dynamic (int8 per token) or static (int8 per tensor)."""

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ValueError(f"bits is {self.bits!r}; allowed are whole numbers from 2 to 8")
        if isinstance(self.group_size, bool) or not isinstance(self.group_size, int):
            raise ValueError(f"group_size is {self.group_size!r}; it must be a whole number")
        if self.group_size != -1 and self.group_size < 1:
            raise ValueError(f"group_size is {self.group_size}; use -1 (per row) or at least 1")
        if not isinstance(self.symmetric, bool):
            raise ValueError(f"symmetric is {self.symmetric!r}; use true or false")
        if self.activations not in get_args(Activations):
            allowed = ", ".join(get_args(Activations))
            raise ValueError(f"activations is {self.activations!r}; allowed are {allowed}")

    @property
    def max_level(self) -> int:
        """Largest stored integer."""
        return int(2**self.bits - 1)

    @property
    def midpoint(self) -> int:
        """Zero point of the symmetric grid: 8 for int4, 128 for int8."""
        return int(2 ** (self.bits - 1))

    def width(self, in_features: int) -> int:
        """Weights per scale for a layer of this width (resolves -1)."""
        return in_features if self.group_size == -1 else self.group_size

    def groups(self, in_features: int) -> int:
        """Number of scales per output row.

        Raises:
            ValueError: the width does not divide into whole groups.
        """
        width = self.width(in_features)
        if in_features % width:
            raise ValueError(
                f"in_features {in_features} does not divide into groups of {width}; "
                "choose a group_size that divides it, or -1"
            )
        return in_features // width

    @property
    def label(self) -> str:
        """Short form for tables, for example ``int4 g128 sym``."""
        grouping = "per row" if self.group_size == -1 else f"g{self.group_size}"
        kind = "sym" if self.symmetric else "asym"
        tail = "" if self.activations == "none" else f" + int8 {self.activations} activations"
        return f"int{self.bits} {grouping} {kind}{tail}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data, in a fixed order, for recipes and checkpoint metadata."""
        return {
            "bits": self.bits,
            "group_size": self.group_size,
            "symmetric": self.symmetric,
            "activations": self.activations,
        }
