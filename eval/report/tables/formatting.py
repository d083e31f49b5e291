"""Numbers, intervals and sizes as text, in each medium.

HTML uses the typographic minus sign, thousands separators and powers of ten. Markdown and the
console use ASCII digits, which other programs can read back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MINUS = "\u2212"
UNKNOWN = "unknown"  # a value that a server does not report
SYNTHETIC = "synthetic"
SAMPLE = "sample"  # not all questions were asked
SYNTHETIC_NOTE = "the built-in benchmark files are drawings, not the published benchmarks"
CELL_LIMIT = 80  # characters of a text in a Markdown table
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MARKUP = re.compile(r"([\\|<>*_`\[\]])")

Formatter = Callable[[Any], str]


class Medium(StrEnum):
    """Where a table is shown."""

    HTML = "html"
    MARKDOWN = "markdown"
    CONSOLE = "console"


@dataclass(frozen=True)
class Format:
    """The text of one kind of value, in each medium."""

    html: Formatter
    markdown: Formatter
    console: Formatter

    def text(self, value: Any, medium: Medium) -> str:
        """Format a value that is not None."""
        formatter: Formatter = getattr(self, medium)
        return formatter(value)


def number(value: float, digits: int = 1) -> str:
    """A number with a true minus sign; no negative zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 1) -> str:
    """A difference: `+1.2`, `−1.2`, `0.0`."""
    text = number(value, digits)
    return f"+{text}" if round(value, digits) > 0 else text


def interval(bounds: Sequence[float], digits: int = 1) -> str:
    """An interval of differences: `−1.2 to +0.3`."""
    return f"{signed(bounds[0], digits)} to {signed(bounds[1], digits)}"


def p_value(p: float) -> str:
    """A p-value to three decimals, or `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def nats(value: float) -> str:
    """A divergence in nats: four decimals, two from 1 on, or a power of ten below 0.0001."""
    if value == 0 or value >= 1e-4:
        return f"{value:.4f}" if value < 1 else f"{value:.2f}"
    return power(value)


def power(value: float) -> str:
    """A small positive number as `2.4 × 10⁻⁵`."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × {power_of_ten(int(exponent))}"


def power_of_ten(exponent: int) -> str:
    """`10⁻⁵`."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def size(count: float | None) -> str:
    """Bytes with a decimal unit: `8.4 MB`."""
    if count is None:
        return UNKNOWN
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def ratio(part: float | None, whole: float | None) -> str | None:
    """`0.62×`; None if the whole is 0, or one of them is unknown."""
    return f"{part / whole:.2f}×" if whole and part is not None else None


def count_of(count: int, noun: str) -> str:
    """`1 question`, `1,164 questions`, `2 categories`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun[:-1]}ies" if noun.endswith("ry") else f"{count:,} {noun}s"


def points(margin: float) -> str:
    """`1 point`, `2 points`, `0.5 points`."""
    return f"{margin:g} point{'' if margin == 1 else 's'}"


def join_names(names: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def escape(text: object, limit: int = CELL_LIMIT) -> str:
    """Make any text safe for a cell of a Markdown table: one line, bounded, without markup."""
    flat = " ".join(str(text).split())
    if len(flat) > limit:
        flat = flat[: limit - 1] + "…"
    return _MARKUP.sub(r"\\\1", flat)


def uniform(formatter: Formatter) -> Format:
    """The same text in every medium; it must hold no Markdown markup."""
    return Format(formatter, formatter, formatter)


def text_format(limit: int = CELL_LIMIT) -> Format:
    """Any text, such as a model's answer; Markdown escapes it and cuts it to `limit` characters."""
    return Format(str, lambda value: escape(value, limit), str)


def fixed(digits: int, *, console: int | None = None, unit: str = "") -> Format:
    """A number with `digits` decimals."""
    return Format(
        lambda value: number(value, digits) + unit,
        _by_spec(f".{digits}f", unit),
        _by_spec(f".{digits if console is None else console}f", unit),
    )


def difference(digits: int, *, markdown: int | None = None, console: int | None = None) -> Format:
    """A number with its sign."""
    in_markdown = digits if markdown is None else markdown
    in_console = in_markdown if console is None else console
    return Format(
        lambda value: signed(value, digits),
        _by_spec(f"+.{in_markdown}f"),
        _by_spec(f"+.{in_console}f"),
    )


def span(digits: int, *, markdown: int | None = None, console: int | None = None) -> Format:
    """An interval of differences, a pair: `−1.2 to +0.3` in HTML, `[-1.2, +0.3]` elsewhere."""
    end = difference(digits, markdown=markdown, console=console)
    return Format(
        lambda ends: interval(ends, digits),
        lambda ends: f"[{end.markdown(ends[0])}, {end.markdown(ends[1])}]",
        lambda ends: f"[{end.console(ends[0])}, {end.console(ends[1])}]",
    )


def bounds(digits: int) -> Format:
    """An interval of values, a pair: `95.2 to 98.1` in HTML, `[95.2, 98.1]` elsewhere."""
    ends = fixed(digits)

    def plain(pair: Sequence[float]) -> str:
        return f"[{ends.console(pair[0])}, {ends.console(pair[1])}]"

    return Format(lambda pair: f"{ends.html(pair[0])} to {ends.html(pair[1])}", plain, plain)


def divergence(spec: str = ".5f") -> Format:
    """A divergence in nats; `spec` formats it outside HTML."""
    return Format(nats, _by_spec(spec), _by_spec(spec))


def _by_spec(spec: str, unit: str = "") -> Formatter:
    return lambda value: format(value, spec) + unit


TEXT = text_format()
COUNT = Format("{:,}".format, str, str)
PERCENT = fixed(1, unit=" %")
P_VALUE = Format(p_value, "{:.3g}".format, "{:.3g}".format)
BYTES = Format(size, "{} B".format, size)
