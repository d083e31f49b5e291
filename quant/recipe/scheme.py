"""Quantization schemes: bits, group size, symmetry and the treatment of activations.

A scheme is data. It fixes the grid (how many levels, how many weights share a scale); finding the
indices on that grid (rounding, GPTQ) is the task of the methods. Its class names the kind of
compressed weight: uniform integers are the first kind (`QuantScheme`). The module does not import
torch, so that a recipe can be read without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import StrictBool

from ...common.validation import Allowed, Integer, validated

if TYPE_CHECKING:
    from torch import Tensor

    from ..compressed_weight import CompressedWeight

Activations = Literal["none", "dynamic", "static"]
Bits = Annotated[int, Integer(2, 8)]
GroupSize = Annotated[
    Literal[-1] | Annotated[int, Integer(1)],
    Allowed("-1 (one scale per output row) or a whole number, at least 1"),
]


@validated
class Scheme(ABC):
    """The grid that one linear layer is compressed to; a kind of grid can add fields."""

    bits: int
    """Width of one stored weight."""
    group_size: int
    """Input features that share a scale; -1 = all of them (one scale per output row)."""
    symmetric: bool
    """Whether the grid is the same for every group, up to the scale."""
    activations: Activations
    """Quantization of the input: none, dynamic (int8 per token) or static (int8 per tensor)."""

    kind: ClassVar[str]
    """Name of the kind of compressed weight, which checkpoint formats list."""

    @property
    @abstractmethod
    def label(self) -> str:
        """Short form for tables, for example `int4 g128 sym`."""

    @abstractmethod
    def weight(self, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """Build a compressed weight from its tensors, see `CompressedWeight.tensors`."""

    def width(self, in_features: int) -> int:
        """Return the number of weights per scale in a layer with this input width."""
        return in_features if self.group_size == -1 else self.group_size

    def groups(self, in_features: int) -> int:
        """Return the number of scales per output row.

        Raises:
            ValueError: the input width does not divide into whole groups.
        """
        width = self.width(in_features)
        if in_features % width:
            raise ValueError(
                f"in_features {in_features} does not divide into groups of {width}; "
                "choose a group_size that divides it, or -1"
            )
        return in_features // width

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, in a fixed order, for recipes and checkpoint metadata."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@validated
class QuantScheme(Scheme):
    """A grid of equally spaced levels.

    Integers are stored unsigned, 0 to `2**bits - 1`; a weight is `scale * (q - zero_point)`.

    Raises:
        ValueError: a field is out of range.
    """

    bits: Bits
    """Width of one stored integer, 2 to 8."""
    group_size: GroupSize = 128
    symmetric: StrictBool = True
    """True: the zero point is fixed at `2**(bits - 1)`."""
    activations: Activations = "none"

    kind: ClassVar[str] = "integer"

    @property
    def max_level(self) -> int:
        """Largest stored integer."""
        return int(2**self.bits - 1)

    @property
    def midpoint(self) -> int:
        """Zero point of the symmetric grid: 8 for int4, 128 for int8."""
        return int(2 ** (self.bits - 1))

    @property
    def label(self) -> str:
        """Short form for tables, for example `int4 g128 sym`."""
        grouping = "per row" if self.group_size == -1 else f"g{self.group_size}"
        kind = "sym" if self.symmetric else "asym"
        tail = "" if self.activations == "none" else f" + int8 {self.activations} activations"
        return f"int{self.bits} {grouping} {kind}{tail}"

    def weight(self, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """See `Scheme.weight`."""
        from ..methods.affine import QuantizedWeight

        return QuantizedWeight(scheme=self, **tensors)
