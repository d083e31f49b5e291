"""The bytes of the original and of the candidate by part of the model, as two stacked bars."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from ....model.part_names import BYTE_PARTS, REST
from .svg import INK, MUTED, PAPER, SERIES, SvgFigure, plain


def byte_bars(name: str, title: str, sides: Mapping[str, Mapping[str, int]]) -> Markup:
    """Plot one bar per model, the first on top, with a segment per part.

    Args:
        name: prefix of identifiers, unique on a page.
        title: text alternative.
        sides: bytes by part (`BYTE_PARTS`), by the label of the bar.
    """
    colors = {part: MUTED if part == REST else SERIES[i] for i, part in enumerate(BYTE_PARTS)}
    drawn = [part for part in BYTE_PARTS if any(p.get(part) for p in sides.values())]
    with SvgFigure(name, 62 + 34 * len(sides)) as figure:
        axes = figure.axes
        for y, parts in enumerate(sides.values()):
            left = 0.0
            for part in drawn:
                width = parts.get(part, 0) / 1e9
                axes.barh(y, width, 0.62, left, color=colors[part], edgecolor=PAPER, linewidth=1)
                left += width
            axes.annotate(
                f"{left:.3g}", (left, y), (4, 0), textcoords="offset points", va="center", color=INK
            )
        axes.set_yticks(range(len(sides)), [plain(label, 30) for label in sides])
        axes.set_ylim(len(sides) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.margins(x=0.1)
        axes.set_xlabel("tensors, GB")
        handles = [axes.patches[index] for index in range(len(drawn))]
        axes.legend(
            handles,
            drawn,
            loc="lower left",
            bbox_to_anchor=(0, 1.0),
            ncols=len(drawn),
            borderaxespad=0.2,
            handlelength=1.0,
            columnspacing=1.2,
        )
        return figure.svg(title)
