"""Quantization schemes: bits, group size, symmetry and the treatment of activations.

A scheme is data. It fixes the grid (which levels, how many weights share a scale); finding the
indices on that grid (rounding, GPTQ) is the task of the methods. Its class names the kind of
compressed weight: uniform integers are the first kind (`QuantScheme`), tables of levels the second
(`TableScheme`). The module does not import torch, so that a recipe can be read without it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import StrictBool

from ...common.validation import Allowed, Integer, OneOf, validated
from .grids import GRIDS, Grid

if TYPE_CHECKING:
    from torch import Tensor

    from ...calib.statistics import InputRounding
    from ..compressed_weight import CompressedWeight
    from ..methods.affine import QuantizedWeight
    from ..methods.grids.fitted_grid import FittedGrid
    from ..methods.grids.table_weight import TableWeight

Activations = Literal["none", "dynamic", "static"]
Bits = Annotated[int, Integer(2, 8)]
GroupSize = Annotated[
    Literal[-1] | Annotated[int, Integer(1)],
    Allowed("-1 (one scale per output row) or a whole number, at least 1"),
]


@validated
class Scheme(ABC):
    """The grid that one linear layer is compressed to; the fields are those of its kind."""

    if TYPE_CHECKING:  # fields or properties of every kind

        @property
        def bits(self) -> int:
            """Width of one stored weight."""

        @property
        def group_size(self) -> int:
            """Input features that share a scale; -1 = all of them (one scale per output row)."""

        @property
        def symmetric(self) -> bool:
            """Whether the grid is the same for every group, up to the scale."""

        @property
        def activations(self) -> Activations:
            """Quantization of the input: none, dynamic (per token) or static (per tensor)."""

    kind: ClassVar[str]
    """Name of the kind of compressed weight, which checkpoint formats list."""

    @property
    def calibrates_input(self) -> bool:
        """Whether the largest magnitude of the input is needed, see `with_input_range`."""
        return self.activations == "static"

    def calibration_rounding(self) -> InputRounding | None:
        """Return how calibration rounds the inputs of a layer; None = it does not."""
        return None

    @property
    def has_matrix_scale(self) -> bool:
        """Whether one scale is above those of all groups of a matrix."""
        return False

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
        named: Any = self
        return {field.name: getattr(self, field.name) for field in fields(named)}


@validated
class GridScheme(Scheme):
    """A scheme of levels that rounding and the solvers find indices on."""

    @abstractmethod
    def fit_for_rounding(
        self, weight: Tensor, hessian: Tensor | None = None, *, fused_range: float | None = None
    ) -> FittedGrid[Any]:
        """Choose the scales of a weight that is rounded to nearest.

        Args:
            weight: `[N, K]`, any float dtype.
            hessian: `[K, K]`, `X' X` of the layer's inputs up to a positive factor. If given,
                scales are searched by the error of the outputs.
            fused_range: largest magnitude in the layers that engines fuse with this one; None = of
                the weight alone. Grids without a scale for the whole matrix ignore it.

        Raises:
            ValueError: the weight is not finite, its width does not divide into groups, or a scale
                is out of range.
        """

    @abstractmethod
    def fit_for_solver(
        self, weight: Tensor, *, search: bool = True, fused_range: float | None = None
    ) -> FittedGrid[Any]:
        """Choose the scales of a weight whose columns a solver will move.

        Args:
            weight: see `fit_for_rounding`.
            search: shrink scales where that lowers the rounding error, see `scale_search.py`.
            fused_range: see `fit_for_rounding`.

        Raises:
            ValueError: see `fit_for_rounding`.
        """


@validated
class QuantScheme(GridScheme):
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

    def fit_for_rounding(
        self, weight: Tensor, hessian: Tensor | None = None, *, fused_range: float | None = None
    ) -> FittedGrid[QuantizedWeight]:
        """See `GridScheme.fit_for_rounding`; the range of fused layers is not needed."""
        from ..methods.grids.integer_grid import fit_for_rounding

        return fit_for_rounding(weight, self, hessian)

    def fit_for_solver(
        self, weight: Tensor, *, search: bool = True, fused_range: float | None = None
    ) -> FittedGrid[QuantizedWeight]:
        """See `GridScheme.fit_for_solver`; the range of fused layers is not needed."""
        from ..methods.grids.integer_grid import fit_for_solver

        return fit_for_solver(weight, self, search=search)


@validated
class TableScheme(GridScheme):
    """A table of levels, see `grids.py`; a weight is a level times the scale of its group.

    Raises:
        ValueError: a field is out of range, or one that the grid does not have.
    """

    grid: Annotated[str, OneOf(tuple(GRIDS), "integers are stated by bits")]
    """Name in `GRIDS`."""
    group_size: GroupSize = 0  # replaced by the grid's default
    scale_rows: Annotated[int, Integer(1)] = 1
    """Output features that share a scale: blocks of `scale_rows` x `group_size` weights."""
    activations: Activations = "none"
    """On the levels of the grid: with one scale per token (fp8; in blocks per token and block), per
    token and group (nvfp4, mxfp4), or for the whole input (static)."""

    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        grid = self.table
        if self.group_size == 0:
            object.__setattr__(self, "group_size", grid.default_group_size)
        allowed = grid.group_sizes
        if allowed and self.group_size not in allowed:
            raise ValueError(
                f"grid {grid.name} with group_size {self.group_size}; allowed: "
                f"{', '.join(map(str, allowed))}"
            )
        if self.scale_rows > 1 and (grid.scale_form != "float" or self.group_size == -1):
            raise ValueError(
                f"scale_rows is {self.scale_rows} with grid {grid.name} and group_size "
                f"{self.group_size}; allowed: 1, or blocks of a grid with float scales"
            )
        choices = ("none", *(a for a in grid.activations if a != "static" or self.scale_rows == 1))
        if self.activations not in choices:
            raise ValueError(
                f"activations is {self.activations!r} with grid {grid.name}"
                f"{' in blocks' if self.scale_rows > 1 else ''}; allowed: {', '.join(choices)}"
            )

    @property
    def table(self) -> Grid:
        """The grid."""
        return GRIDS[self.grid]

    @property
    def bits(self) -> int:
        """Width of one stored weight."""
        return self.table.bits

    @property
    def symmetric(self) -> bool:
        """Always true: there are no zero points."""
        return True

    @property
    def has_matrix_scale(self) -> bool:
        """See `Scheme.has_matrix_scale`: E4M3 scales need one above them."""
        return self.table.scale_form == "e4m3"

    @property
    def calibrates_input(self) -> bool:
        """See `Scheme.calibrates_input`; the scales of groups may need one above them too."""
        return self.activations == "static" or (
            self.activations != "none" and self.has_matrix_scale
        )

    def calibration_rounding(self) -> InputRounding | None:
        """See `Scheme.calibration_rounding`."""
        if self.activations == "none":
            return None
        from ..methods.grids.activation_rounding import CalibrationRounding

        return CalibrationRounding(self)

    @property
    def input_group(self) -> int:
        """Input features that share a scale of a token; -1 = all of them."""
        grouped = self.scale_rows > 1 or self.table.scale_form != "float"
        return self.group_size if grouped else -1

    @property
    def label(self) -> str:
        """Short form for tables, for example `nvfp4 g16 + nvfp4 dynamic activations`."""
        grouping = "per row" if self.group_size == -1 else f"g{self.group_size}"
        if self.scale_rows > 1:
            grouping = f"{self.scale_rows}x{self.group_size}"
        tail = f" + {self.grid} {self.activations} activations"
        return f"{self.grid} {grouping}{'' if self.activations == 'none' else tail}"

    def scale_shape(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Return rows and groups of the scales of a matrix.

        Raises:
            ValueError: see `groups`.
        """
        return -(-out_features // self.scale_rows), self.groups(in_features)

    def weight(self, tensors: Mapping[str, Tensor]) -> CompressedWeight:
        """See `Scheme.weight`."""
        from ..methods.grids.table_weight import TableWeight

        return TableWeight(scheme=self, **tensors)

    def fit_for_rounding(
        self, weight: Tensor, hessian: Tensor | None = None, *, fused_range: float | None = None
    ) -> FittedGrid[TableWeight]:
        """See `GridScheme.fit_for_rounding`."""
        from ..methods.grids.table_grid import fit_for_rounding

        return fit_for_rounding(weight, self, hessian, fused_range=fused_range)

    def fit_for_solver(
        self, weight: Tensor, *, search: bool = True, fused_range: float | None = None
    ) -> FittedGrid[TableWeight]:
        """See `GridScheme.fit_for_solver`."""
        from ..methods.grids.table_grid import fit_for_solver

        return fit_for_solver(weight, self, search=search, fused_range=fused_range)
