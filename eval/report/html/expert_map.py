"""Calibration tokens of experts: a heat map, and the experts that were rounded in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from .svg import ACCENT, BAD, SvgFigure, plain

SHADES = (0.15, 0.35, 0.65, 1.0)
"""Opacities of the levels from few tokens to many."""


@dataclass(frozen=True)
class Level:
    """A range of numbers of tokens that is drawn alike."""

    label: str
    least: float
    color: str
    opacity: float


def levels(tokens: Mapping[str, Sequence[int]], floor: int) -> list[Level]:
    """Divide the numbers of tokens at the floor, and at half, one and two times their mean.

    Args:
        tokens: of each expert, by layer; at least one.
        floor: experts with fewer are rounded.
    """
    counts = [count for of_layer in tokens.values() for count in of_layer]
    mean = sum(counts) / len(counts)
    bounds = sorted({float(floor), *(max(floor, mean * times) for times in (0.5, 1.0, 2.0))})
    ends = [*(f" to {round(bound) - 1:,}" for bound in bounds[1:]), " and more"]
    shades = SHADES[-len(bounds) :]
    return [
        Level(f"fewer than {floor}", 0.0, BAD, 1.0),
        *(
            Level(f"{round(bound):,}{end}", bound, ACCENT, shade)
            for bound, end, shade in zip(bounds, ends, shades, strict=True)
        ),
    ]


def expert_map(name: str, title: str, tokens: Mapping[str, Sequence[int]], floor: int) -> Markup:
    """Draw the number of tokens of every expert: a row for each layer, a column for each expert.

    Args:
        name: prefix of identifiers, unique on a page.
        title: text alternative.
        tokens: of each expert, by layer; at least one.
        floor: experts with fewer are rounded.
    """
    scale = levels(tokens, floor)
    rows = list(tokens.values())
    columns = max(map(len, rows))
    with SvgFigure(name, 84 + max(100, 10 * len(rows))) as figure:
        axes = figure.axes
        for number, level in enumerate(scale):
            above = scale[number + 1].least if number + 1 < len(scale) else float("inf")
            # One shape per level, and neighbours joined: a model may have 12,000 experts.
            boxes = [
                [(x - 0.5, y - 0.5), (end + 0.5, y - 0.5), (end + 0.5, y + 0.5), (x - 0.5, y + 0.5)]
                for y, row in enumerate(rows)
                for x, end in _runs([level.least <= count < above for count in row])
            ]
            path = Path.make_compound_path(*(Path([*b, b[0]], closed=True) for b in boxes))
            shade = {"facecolor": level.color, "alpha": level.opacity, "linewidth": 0}
            axes.add_patch(PathPatch(path, label=level.label, **shade))
        axes.set_xlim(-0.5, columns - 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(visible=False)
        for axis in (axes.xaxis, axes.yaxis):
            axis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
        axes.set_xlabel("expert")
        axes.set_ylabel("layer, from 0")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, title="calibration tokens")
        return figure.svg(title)


def few_tokens(tokens: Mapping[str, Sequence[int]], floor: int) -> list[str]:
    """Name the experts with fewer tokens than the floor, one line for each layer that has any."""
    lines = []
    for layer, counts in tokens.items():
        few = [f"{expert} ({count})" for expert, count in enumerate(counts) if count < floor]
        if few:
            lines.append(f"{plain(layer)}: {', '.join(few)}")
    return lines


def _runs(inside: Sequence[bool]) -> list[tuple[int, int]]:
    """Return the first and last index of each run of true values."""
    runs = []
    for value, members in groupby(enumerate(inside), key=lambda pair: pair[1]):
        indices = [index for index, _ in members]
        if value:
            runs.append((indices[0], indices[-1]))
    return runs
