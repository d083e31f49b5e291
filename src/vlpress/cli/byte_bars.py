"""Bytes by part of a model as text: one line of numbers, and a stacked bar per model."""

from __future__ import annotations

from collections.abc import Mapping

from ..common.progress import format_bytes
from ..model.part_names import BYTE_PARTS

WIDTH = 60
"""Characters of the longest bar."""
SYMBOLS = dict(zip(BYTE_PARTS, "DTEHM.", strict=True))
Sizes = Mapping[str, int]


def byte_lines(before: Sizes | None, after: Sizes) -> list[str]:
    """Show the bytes of the original, if they are known, next to those of the candidate.

    Args:
        before: bytes by part (`BYTE_PARTS`) of the original; None if they are unknown.
        after: those of the candidate.
    """
    shown = [part for part in BYTE_PARTS if after.get(part) or (before or after).get(part)]
    numbers = (_change(part, None if before is None else before.get(part, 0), after.get(part, 0))
               for part in shown)  # fmt: skip
    sides = {"original": before} if before else {}
    sides |= {"candidate": after}
    scale = WIDTH / max(sum(parts.values()) for parts in sides.values())
    return [
        f"bytes by part: {', '.join(numbers)}",
        *(
            f"{label:9}  {_bar(parts, scale)} {format_bytes(sum(parts.values()))}"
            for label, parts in sides.items()
        ),
    ]


def _change(part: str, before: int | None, after: int) -> str:
    known = "" if before is None else f"{format_bytes(before)} -> "
    return f"{SYMBOLS[part]} {part} {known}{format_bytes(after)}"


def _bar(parts: Sizes, scale: float) -> str:
    """Draw a bar whose segments end at rounded positions, so that rounding errors do not add up."""
    text, total = "", 0
    for part in BYTE_PARTS:
        total += parts.get(part, 0)
        text += SYMBOLS[part] * (round(scale * total) - len(text))
    return text
