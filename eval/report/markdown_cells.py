"""Tables in Markdown whose cells may hold anything a model said."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tabulate import tabulate

CELL = 80  # longest text in a table cell
_SPECIAL = re.compile(r"([\\|<>*_`\[\]])")


def escape(text: object, limit: int = CELL) -> str:
    """Make a text safe for a table cell: one line, bounded, without markup."""
    flat = " ".join(str(text).split())
    if len(flat) > limit:
        flat = flat[: limit - 1] + "…"
    return _SPECIAL.sub(r"\\\1", flat)


def bounds(ends: Sequence[float] | None, form: str) -> str:
    """An interval as `[low, high]`; empty for none."""
    return "" if ends is None else f"[{ends[0]:{form}}, {ends[1]:{form}}]"


def table(rows: Iterable[Sequence[object]], head: Sequence[str]) -> str:
    """A table of cells that are safe already."""
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)
