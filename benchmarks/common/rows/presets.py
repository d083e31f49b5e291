"""Rows of presets with steps of their own for every part."""

from __future__ import annotations

from typing import Any, Self

from vlpress.quant.recipe.presets import PRESETS

from .row import Row

PRESET = "preset"
WHOLE = {name: PRESETS[name] for name in ("w4a16-all",)}
"""Presets by name; measured on request, by the method `preset`."""


class PresetRow(Row):
    """A preset for the whole model."""

    settings = WHOLE

    @classmethod
    def rows(cls) -> list[Self]:
        """One row per preset."""
        return [cls(setting, PRESET, "all") for setting in WHOLE]

    @property
    def scored(self) -> bool:
        """Always."""
        return True

    def content(self) -> dict[str, Any]:
        """The preset as it is."""
        return dict(self.scheme)
