"""Rows of decoders with fewer channels or layers."""

from __future__ import annotations

from typing import Any, Self

from .grids import GRIDS
from .row import Row

SHRINKS: dict[str, dict[str, Any]] = {
    "mlp-0.875": {"width": "mlp", "keep": 0.875, "multiple": 32},
    "mlp-0.75": {"width": "mlp", "keep": 0.75, "multiple": 32},
    "layers-4": {"layers": 4},
    "mlp-0.67-int4": {"width": "mlp", "keep": 0.67},
}
"""Decoders with narrower MLPs, or with fewer layers (of 5 in tiny and tiny3): what stays; measured
on request. Names that end in an int are quantized after it, with groups of 128."""
SHRINK_METHODS = {
    "width": ("wanda+refit", "wanda", "magnitude+refit", "magnitude", "random+refit", "random"),
    "layers": ("influence", "random"),
}
"""The score of what stays, with or without a refit."""


class ShrunkRow(Row):
    """A smaller decoder; its method is how the parts that stay are chosen."""

    settings = SHRINKS
    is_beside_plain = True

    @classmethod
    def rows(cls) -> list[Self]:
        """All shapes with their methods."""
        return [
            cls(setting, method)
            for setting, options in SHRINKS.items()
            for method in SHRINK_METHODS["width" if "width" in options else "layers"]
        ]

    @property
    def scored(self) -> bool:
        """The best choice of each kind, and chance."""
        return self.method in ("wanda+refit", "influence", "random")

    def content(self) -> dict[str, Any]:
        """The step that shrinks the decoder, and the one that quantizes the result."""
        score, _, refit = self.method.partition("+")
        shrink = {"method": "shrink", **self.scheme, "score": score}
        steps = [shrink | {"refit": bool(refit)} if "width" in self.scheme else shrink]
        grid = GRIDS.get(self.setting.rpartition("-")[2])
        return {"step": [*steps, *([] if grid is None else [{"method": "gptq", **grid}])]}
