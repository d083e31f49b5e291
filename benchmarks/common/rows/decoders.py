"""Rows of the main table: integers in the decoder, with and without the vision tower."""

from __future__ import annotations

from typing import Any, Self

from .row import Row
from .steps import DECODER, steps_of

SETTINGS: dict[str, dict[str, Any]] = {
    "w8a16": {"bits": 8, "group_size": 128},
    "w8a8": {"bits": 8, "group_size": -1, "activations": "dynamic"},
    "w8a8-static": {"bits": 8, "group_size": -1, "activations": "static"},
    "w4a8": {"bits": 4, "group_size": 128, "activations": "dynamic"},
    "w4a16": {"bits": 4, "group_size": 128},
    "w4a16-g32": {"bits": 4, "group_size": 32},
    "w4a16-asym": {"bits": 4, "group_size": 128, "symmetric": False},
    "w3a16": {"bits": 3, "group_size": 128},
    "w4a16-g64": {"bits": 4, "group_size": 64},
    "w3a16-g64": {"bits": 3, "group_size": 64},
}
"""Decoder layers; symmetric by default. Groups of 64 are for `real_weights.py` alone."""

WEIGHT_ONLY = ("rtn", "gptq", "gptaq", "awq+rtn", "awq+gptq", "awq+gptaq")
INTEGER = ("rtn", "gptq", "smoothquant+gptq", "smoothquant-search+gptq", "smoothquant+gptaq")
METHODS: dict[str, tuple[str, ...]] = {
    "w8a16": ("rtn", "gptq"),
    "w8a8": INTEGER,
    "w8a8-static": ("rtn", "gptq", "smoothquant+gptq", "smoothquant-search+gptq"),
    "w4a8": ("gptaq", *INTEGER),
    "w4a16": WEIGHT_ONLY,
    "w4a16-g32": WEIGHT_ONLY,
    "w4a16-asym": ("awq+rtn", "gptaq"),
    "w3a16": WEIGHT_ONLY,
}
VISION_METHODS = {
    "w8a8": ("rtn", "gptq", "smoothquant-search+gptq"),
    "w4a8": ("smoothquant-search+gptq",),
    "w4a16": ("rtn", "gptq", "gptaq"),
    "w3a16": ("gptq", "gptaq"),
}
"""Methods of settings with vision tower and merger, which always have 8 bits per output row."""
SCORED = ("rtn", "gptq", "gptaq", "smoothquant-search+gptq")
UNSCORED = ("w4a16-g32", "w4a16-asym")
"""Methods with benchmark scores, and settings without: evaluation takes most of the time."""
VISION = ["tower"]
WITH_VISION = "decoder+vision"


class DecoderRow(Row):
    """Integers in decoder layers, or with the scope `decoder+vision` in the tower as well."""

    settings = SETTINGS

    @classmethod
    def rows(cls) -> list[Self]:
        """All rows of the main table."""
        alone = [cls(setting, name) for setting, names in METHODS.items() for name in names]
        seeing = [
            cls(setting, name, WITH_VISION)
            for setting, names in VISION_METHODS.items()
            for name in names
        ]
        return alone + seeing

    @property
    def scored(self) -> bool:
        """See `SCORED`."""
        return self.method in SCORED and self.setting not in UNSCORED

    def content(self) -> dict[str, Any]:
        """The recipe's steps, those of the tower first."""
        parts = [(DECODER, self.scheme)]
        if self.scope == WITH_VISION:
            activations = self.scheme.get("activations", "none")
            tower = {"bits": 8, "group_size": -1, "activations": activations}
            parts.insert(0, (VISION, tower))
        return {"step": steps_of(self.method, parts)}
