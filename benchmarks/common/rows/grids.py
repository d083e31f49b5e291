"""Rows of integers of every width and of tables of levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from .row import Row
from .steps import DECODER, steps_of

GRIDS: dict[str, dict[str, Any]] = {
    **{f"int{bits}": {"bits": bits, "group_size": 128} for bits in range(2, 9)},
    "fp8": {"grid": "fp8", "activations": "dynamic"},
    "fp8-block": {"grid": "fp8", "group_size": 128, "scale_rows": 128, "activations": "dynamic"},
    "fp8a16": {"grid": "fp8"},
    "nvfp4": {"grid": "nvfp4", "activations": "dynamic"},
    "nvfp4a16": {"grid": "nvfp4"},
    "mxfp4": {"grid": "mxfp4", "activations": "dynamic"},
    "mxfp4a16": {"grid": "mxfp4"},
    "nf4": {"grid": "nf4", "group_size": 128},
    "ternary": {"grid": "ternary"},
    "pot4": {"grid": "pot4"},
}
"""Tables of levels for decoder layers, and integers, all on as many samples; measured on
request (`accuracy.py --settings`)."""

GRID_METHODS = ("rtn", "gptq", "gptaq")
"""Methods of tables of levels; rounding and the better of the solvers are scored."""
FLOAT = "float"
"""Method that keeps the weights in float, so that rounded activations alone remain."""
ACTIVATIONS = "activations alone"
"""Scope of its rows."""


class GridRow(Row):
    """A grid for decoder layers."""

    settings = GRIDS

    @classmethod
    def rows(cls) -> list[Self]:
        """All grids with their methods, then those of activations alone."""
        weights = [cls(setting, name) for setting in GRIDS for name in GRID_METHODS]
        rounding = [setting for setting, grid in GRIDS.items() if "activations" in grid]
        return weights + [cls(setting, FLOAT, ACTIVATIONS) for setting in rounding]

    @property
    def scored(self) -> bool:
        """Rounding; and one of the solvers, see `scored_if_best`."""
        return self.method == "rtn"

    @property
    def scored_if_best(self) -> bool:
        """The solvers."""
        return self.method in GRID_METHODS[1:]

    @property
    def is_plain(self) -> bool:
        """Integers by GPTQ."""
        return self.method == "gptq" and "bits" in self.scheme

    def seeds(self, seeds: Sequence[int]) -> list[int]:
        """Calibration seeds: of integers and tables that no format holds, the first."""
        is_format = self.scheme.get("grid", "").startswith(("fp8", "nvfp4", "mxfp4"))
        return list(seeds if is_format else seeds[:1])

    def content(self) -> dict[str, Any]:
        """The recipe's steps; rounding, where the weights are restored afterwards."""
        method = "rtn" if self.method == FLOAT else self.method
        return {"step": steps_of(method, [(DECODER, self.scheme)])}
