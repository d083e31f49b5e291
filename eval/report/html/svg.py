"""Figures for a page: matplotlib's SVG, adapted for embedding in HTML.

Colours become variables of the page's style sheet, so that one figure works in light and dark
schemes. Text remains text in the page's font. Identifiers get the figure's name as a prefix,
because a page holds several figures.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 480  # of every figure, in SVG units: CSS pixels unless the page is narrower
INK, MUTED, LINE, PAPER = "#010101", "#010102", "#010103", "#010104"
GOOD, BAD, ACCENT = "#010105", "#010106", "#010107"
SERIES = ("#010201", "#010202", "#010203", "#010204", "#010205", "#010206", "#010207", "#010208")
# Placeholder colours, unique in the SVG, and the variables that replace them.
_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    LINE: "--line",
    PAPER: "--paper",
    GOOD: "--good",
    BAD: "--bad",
    ACCENT: "--accent",
    **{color: f"--s{number}" for number, color in enumerate(SERIES, start=1)},
}
_STYLE: Any = {  # matplotlib's own type lists every key there is
    "svg.fonttype": "none",
    "svg.hashsalt": "vlpress",  # deterministic identifiers
    "text.parse_math": False,  # names of categories may hold dollar signs
    "font.size": 11.5,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 11,
    "ytick.labelsize": 11,
    "legend.frameon": False,
    "legend.fontsize": 11,
}
_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_FONT = re.compile(r"\s*font-family:[^;]*;?")


class SvgFigure:
    """A matplotlib figure with one pair of axes, drawn inside a `with` block that sets the style.

    Args:
        name: prefix of its identifiers; unique on a page.
        height: in the units of `WIDTH`.
    """

    def __init__(self, name: str, height: float) -> None:
        self._name = name
        self._context = matplotlib.rc_context(_STYLE)
        self._size = (WIDTH / 72, height / 72)
        self.figure: Figure
        self.axes: Axes

    def __enter__(self) -> SvgFigure:
        self._context.__enter__()
        self.figure = Figure(figsize=self._size, layout="constrained")
        self.axes = self.figure.add_subplot()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(None, None, None)

    def svg(self, title: str) -> Markup:
        """Render the figure as an `<svg>` element for embedding.

        Args:
            title: text alternative for screen readers.
        """
        buffer = io.StringIO()
        with warnings.catch_warnings():
            # matplotlib's font only measures the text; the page's fonts draw it.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
        return _inline(buffer.getvalue(), self._name, title)


def plain(text: str, limit: int = 40) -> str:
    """Make a label valid in XML: one line, bounded, no control characters or lone surrogates."""
    flat = "".join(c if c.isprintable() else " " for c in text)
    flat = " ".join(flat.split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def _inline(text: str, name: str, title: str) -> Markup:
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    root = ET.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.set("class", "plot")
    root.set("role", "img")
    root.set("aria-label", title)
    referenced = _referenced(root)
    for element in root.iter():
        _rename(element, name, referenced)
    svg = ET.tostring(root, encoding="unicode")
    for color, variable in _VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return Markup(svg)


def _referenced(root: ET.Element) -> set[str]:
    """Identifiers with references; `_rename` drops the others to save bytes."""
    identifiers = set()
    for element in root.iter():
        for key, value in element.attrib.items():
            identifiers.update(_REFERENCE.findall(value))
            if key == f"{{{_XLINK}}}href":
                identifiers.add(value.removeprefix("#"))
    return identifiers


def _rename(element: ET.Element, name: str, referenced: set[str]) -> None:
    """Prefix the identifiers and references of an element with the figure's name."""
    for key, value in list(element.attrib.items()):
        if key == "id":
            if value in referenced:
                element.set(key, f"{name}-{value}")
            else:
                del element.attrib[key]
        elif key == f"{{{_XLINK}}}href":
            element.set(key, f"#{name}-{value.removeprefix('#')}")
        else:
            value = _FONT.sub("", value) if key == "style" else value
            element.set(key, _REFERENCE.sub(rf"url(#{name}-\1)", value))
