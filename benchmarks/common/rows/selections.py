"""Tables of rows of several families, and the plain row that another is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from .adapters import AdapterRow
from .grids import GridRow
from .masks import MaskRow
from .recovered import RecoveredRow
from .rotations import RotationRow
from .row import Row
from .shrinks import ShrunkRow

Selection = Sequence[tuple[type[Row], Sequence[str], Sequence[str]]]
"""Family, settings and methods, in the order of the table."""
SCORES = ("magnitude", "wanda", "sparsegpt")
RECOVERED_METHODS = (
    *("gptq", "gptq>scales"),
    *("gptaq", "gptaq>scales", "gptaq>rounding", "gptaq>rounding>scales"),
)
METHODS: Selection = (
    (GridRow, [f"int{bits}" for bits in (2, 3, 4, 5, 8)], ["gptq"]),
    (AdapterRow, ["int3-g32", "int4-g32"], ["gptq"]),
    (GridRow, ["ternary", "pot4", "nf4", "nvfp4a16"], ["gptq"]),
    (MaskRow, ["int4-0.75-sparsegpt"], ["gptq"]),
    (MaskRow, [f"int4-{keep}-{by}" for keep in (0.5, "2:4") for by in SCORES], ["gptq"]),
    (ShrunkRow, ["mlp-0.875", "mlp-0.75"], ["wanda+refit", "random"]),
    (ShrunkRow, ["layers-4"], ["influence", "random"]),
    (ShrunkRow, ["mlp-0.67-int4"], ["wanda+refit", "random"]),
    (AdapterRow, ["int3-g128-eora", "int4-g128-eora"], ["gptq"]),
    (AdapterRow, ["nvfp4-plain", "nvfp4-svd_first"], ["gptq", "smoothquant+gptq"]),
    (
        RotationRow,
        ["rotated-w4a8-row", "rotated-w8a8-static"],
        ["gptq", "rotate+gptq", "smoothquant-search+gptq"],
    ),
    (RotationRow, ["rotated-nvfp4"], ["gptq", "rotate+gptq"]),
    (RecoveredRow, ["int2-recovered", "int3-recovered"], RECOVERED_METHODS),
)
"""Every method of compression, beside plain integers of nearly its size."""
TABLES: dict[str, Selection] = {"methods": METHODS}


def rows_of(selection: Selection) -> list[Row]:
    """Rows of a selection."""
    return [
        family(setting, method)
        for family, settings, methods in selection
        for setting in settings
        for method in methods
    ]


def nearest_plain(row: Row, rows: Iterable[Row], size: Callable[[Row], int | None]) -> Row | None:
    """Find the row of plain integers of nearest size.

    Args:
        row: any row.
        rows: all rows of the table.
        size: bytes of a row; None: not known.

    Returns:
        The row, which may be `row` itself; None if no size is known.
    """
    target = size(row)
    sizes = {other: size(other) for other in rows if other.is_plain}
    distances = {
        other: abs(known - target)
        for other, known in sizes.items()
        if known is not None and target is not None
    }
    return min(distances, key=lambda other: distances[other], default=None)
