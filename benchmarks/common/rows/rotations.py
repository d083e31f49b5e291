"""Rows of decoder layers with and without a rotation of the whole model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Self

from .row import Row
from .steps import DOWN, ROTATES

ROTATIONS: dict[str, dict[str, Any]] = {
    "rotated-w4a16": {"bits": 4, "group_size": 128},
    "rotated-w4a16-row": {"bits": 4, "group_size": -1},
    "rotated-w4a8": {"bits": 4, "group_size": 128, "activations": "dynamic"},
    "rotated-w4a8-row": {"bits": 4, "group_size": -1, "activations": "dynamic"},
    "rotated-w8a8-static": {"bits": 8, "group_size": -1, "activations": "static"},
    "rotated-nvfp4": {"grid": "nvfp4", "activations": "dynamic"},
}
"""Schemes of decoder layers; measured on request."""
SEARCHED = "smoothquant-search"
ROTATION_METHODS = ("rtn", "rotate+rtn", "gptq", "rotate+gptq")
"""Methods of all settings of rotations."""
BEST_OF_8 = ("rotated-w4a8-row", "rotated-w8a8-static", "rotated-nvfp4")
"""Settings in which the best of eight draws is taken too."""


class RotationRow(Row):
    """A scheme with a rotation, or the same without."""

    settings = ROTATIONS
    is_beside_start = True

    @classmethod
    def rows(cls) -> list[Self]:
        """All schemes, rotated beside the same without; with int8 inputs, SmoothQuant too."""
        rows = []
        for setting, scheme in ROTATIONS.items():
            names = list(ROTATION_METHODS)
            if "bits" in scheme and "activations" in scheme:
                names += [f"{SEARCHED}+gptq", f"rotate+{DOWN}+gptq"]
            if setting in BEST_OF_8:
                names.append("rotate8+rtn")
            rows += [cls(setting, name) for name in names]
        return rows

    @property
    def draws(self) -> bool:
        """Whether it is rotated: the signs are drawn."""
        return self.unrotated is not None

    @property
    def beside(self) -> Row | None:
        """The row without its rotation."""
        return self.unrotated

    @property
    def unrotated(self) -> Self | None:
        """The row without its rotation, and all inputs smoothed if some are; None: it has none."""
        first, _, rest = self.method.partition("+")
        return replace(self, method=rest.replace(DOWN, SEARCHED)) if first in ROTATES else None
