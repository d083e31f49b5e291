"""The `[vision_input]` table of a recipe: how many visual tokens images have.

`reduce` drops tokens after the merger, in vlpress alone. `max_pixels` scales images down before the
vision tower and is written to the processor's configuration, which every engine reads.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import InstanceOf

from ...common.validation import Integer, parse, validated
from ...model.processing.pixel_settings import MAX_MAX_PIXELS
from ...model.token_reduction.rule import ReductionRule
from ...model.token_reduction.table import read_rule

NAME = "vision_input"
VISUAL_TOKENS, MAX_PIXELS = "visual_tokens", "max_pixels"
"""Keys of the rule and of the area in records."""


@validated
class VisionInput:
    """Visual tokens of the samples and of the checkpoint.

    Raises:
        ValueError: a field is out of range.
    """

    reduction: InstanceOf[ReductionRule] | None = None
    """Rule that drops visual tokens, see `ReductionRule`; None: all are kept."""
    max_pixels: Annotated[int, Integer(1, MAX_MAX_PIXELS)] | None = None
    """Largest area of a scaled image in pixels; None: the model's own."""

    @classmethod
    def from_table(cls, table: object) -> VisionInput:
        """Build it from the plain data of a recipe; None, without the table, keeps everything.

        Raises:
            ValueError: a key is unknown, a value is out of range, or there is no key.
        """
        if table is None:
            return cls()
        section = parse(_Table, table, "recipe", NAME)
        if section.reduce is None and section.max_pixels is None:
            raise ValueError(
                f"recipe: {NAME} has no key; allowed: reduce, max_pixels; give one of them, or "
                "leave the table out"
            )
        rule = section.reduce
        rule = None if rule is None else read_rule(rule, "recipe", f"{NAME}.reduce")
        return cls(rule, section.max_pixels)

    def described(self) -> dict[str, Any]:
        """Return what a plan and the record of a checkpoint say; empty if everything is kept."""
        return {
            **({} if self.max_pixels is None else {MAX_PIXELS: self.max_pixels}),
            **({} if self.reduction is None else {VISUAL_TOKENS: self.reduction.to_dict()}),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `from_table` reads; empty if everything is kept."""
        return {
            **({} if self.max_pixels is None else {"max_pixels": self.max_pixels}),
            **({} if self.reduction is None else {"reduce": self.reduction.to_dict()}),
        }


@validated
class _Table:
    reduce: Any = None
    max_pixels: Annotated[int, Integer(1, MAX_MAX_PIXELS)] | None = None
