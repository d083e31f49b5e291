"""Rows of decoders with weights held at zero."""

from __future__ import annotations

from typing import Any, Self

from .row import Row
from .steps import DECODER, steps_of

MASKS: dict[str, dict[str, Any]] = {
    f"int4-{keep}-{score}": {"bits": 4, "group_size": 128, "keep": keep, "score": score}
    for keep in (0.75, 0.5, "2:4")
    for score in ("magnitude", "wanda", "sparsegpt")
}
"""int4 in decoder layers with weights held at zero: keep and score; measured on request."""
MASK_METHODS = ("rtn", "gptq")
"""Methods of masks; rounding has no score of a solver."""


class MaskRow(Row):
    """int4 with zeros; solvers take columns in their own order, which patterns need."""

    settings = MASKS
    saves_in_container = True

    @classmethod
    def rows(cls) -> list[Self]:
        """All masks with their methods."""
        return [
            cls(setting, name)
            for setting, scheme in MASKS.items()
            for name in MASK_METHODS
            if name != "rtn" or scheme["score"] != "sparsegpt"
        ]

    @property
    def scored(self) -> bool:
        """The solver."""
        return self.method == "gptq"

    def content(self) -> dict[str, Any]:
        """The recipe's steps, with columns in their own order."""
        ordered = {} if self.method == "rtn" else {"act_order": False}
        return {"step": steps_of(self.method, [(DECODER, {**self.scheme, **ordered})])}
