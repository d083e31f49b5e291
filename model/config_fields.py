"""Numbers from a config file, each within bounds that a model can have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 2**20
"""Features, inner channels, pixels: no model has as many."""
DEPTH = 2**12
"""Blocks and heads."""
VOCABULARY = 2**24
POSITIONS = 2**40


class Fields:
    """One section of a config.

    Args:
        raw: the section.
        where: its name, in front of a field's; empty for the outermost.
    """

    def __init__(self, raw: Mapping[str, Any], where: str = "") -> None:
        self._raw, self._where = raw, where

    def whole(self, name: str, default: int, *, most: int, least: int = 1) -> int:
        """A whole number from `least` to `most`.

        Raises:
            ValueError: the field holds something else.
        """
        return self._whole(name, self._raw.get(name, default), least, most)

    def wholes(self, name: str, default: Sequence[int], *, most: int) -> tuple[int, ...]:
        """A list of whole numbers from 0 to `most`.

        Raises:
            ValueError: the field holds something else.
        """
        found = self._raw.get(name, default)
        if not isinstance(found, Sequence) or isinstance(found, str):
            raise self._wrong(name, found, "a list of whole numbers")
        return tuple(self._whole(name, number, 0, most) for number in found)

    def positive(self, name: str, default: float, *, most: float) -> float:
        """A number above 0, at most `most`.

        Raises:
            ValueError: the field holds something else.
        """
        found = self._raw.get(name, default)
        if type(found) not in (int, float) or not 0 < found <= most:
            raise self._wrong(name, found, f"a number above 0, at most {most:g}")
        return float(found)

    def _whole(self, name: str, found: Any, least: int, most: int) -> int:
        # Some libraries write whole numbers with a point.
        if type(found) is float and found.is_integer():
            found = int(found)
        if type(found) is not int or not least <= found <= most:
            raise self._wrong(name, found, f"a whole number from {least} to {most}")
        return int(found)

    def _wrong(self, name: str, found: Any, allowed: str) -> ValueError:
        shown = repr(found) if len(repr(found)) <= 40 else repr(found)[:37] + "..."
        place = f"{self._where}.{name}" if self._where else name
        return ValueError(
            f"config.json: {place} is {shown}; allowed: {allowed}; "
            "take the file from the original checkpoint"
        )
