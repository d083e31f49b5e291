"""The figures of a report: intervals per category, divergences, and layer errors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import fmean, median
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ..tables.formatting import MINUS, nats, power, power_of_ten
from .labels import place_labels
from .svg import ACCENT, BAD, GOOD, INK, LINE, MUTED, PAPER, SERIES, SvgFigure, plain

FLOOR = 1e-8  # nats; smaller divergences are rounding errors and are drawn at this value
TOKENS_PER_POINT = 20  # answer positions are pooled until they hold as many tokens
LABEL_LIMIT = 28  # characters of a label at a point
MARKERS = "osD^vPX*"
_BLOCK = re.compile(r"(.+?)\.(\d+)\.(.+)")
_EXPERT = re.compile(r"(?<=\bexperts)\.\d+\.")


@dataclass(frozen=True)
class IntervalRow:
    """A paired difference in points, with its interval."""

    label: str
    n: int
    delta: float
    low: float
    high: float
    is_total: bool = False


@dataclass(frozen=True)
class Position:
    """Divergences of the answer tokens at positions `first` to `last`, counted from 1."""

    first: int
    last: int
    tokens: int
    mean: float
    median: float
    p90: float


@dataclass(frozen=True)
class LayerError:
    """One quantized linear layer."""

    stage: str  # the blocks it belongs to, such as model.layers
    block: int
    kind: str  # its name inside the block
    error: float


def interval_plot(name: str, title: str, rows: Sequence[IntervalRow], margin: float) -> Markup:
    """Plot one interval per row, the first on top, with lines at zero and minus the margin.

    Args:
        name: prefix of identifiers, unique on a page.
        title: text alternative.
        rows: differences and intervals in points.
        margin: allowed loss in points.
    """
    with SvgFigure(name, 62 + 19 * len(rows)) as figure:
        axes = figure.axes
        for y, row in enumerate(rows):
            color = GOOD if row.low > 0 else BAD if row.high < 0 else ACCENT
            width, mark = (3.0, 7.0) if row.is_total else (1.6, 5.0)
            axes.plot([row.low, row.high], [y, y], color=color, linewidth=width)
            axes.plot([row.delta], [y], "D" if row.is_total else "o", color=color, ms=mark)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.axvline(-margin, color=BAD, linewidth=1, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(rows)), [f"{plain(row.label, 30)} ({row.n})" for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: format_points(x)))
        axes.set_xlabel("candidate minus base, points")
        return figure.svg(title)


def divergence_histogram(name: str, title: str, values: Sequence[float]) -> Markup:
    """Plot the distribution of the answer tokens' divergences (nats, not negative), logarithmic."""
    clipped = np.log10(np.maximum(np.asarray(values, dtype=np.float64), FLOOR))
    low = math.log10(FLOOR)
    edges = np.arange(low, max(float(clipped.max()), low + 1) + 0.25, 0.25)
    marks = [
        ("median", float(np.median(values)), (0, (1, 1.5))),
        ("mean", fmean(values), (0, (5, 2))),
        ("99th percentile", float(np.percentile(values, 99)), "solid"),
    ]
    with SvgFigure(name, 300) as figure:
        axes = figure.axes
        axes.hist(clipped, bins=edges.tolist(), color=ACCENT, edgecolor=PAPER, linewidth=0.6)
        for label, value, dashes in marks:
            axes.axvline(
                math.log10(max(value, FLOOR)),
                color=INK,
                linewidth=1.3,
                linestyle=dashes,
                label=f"{label} {nats(value)}",
            )
        axes.set_xticks(range(int(low), math.ceil(edges[-1]) + 1))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: power_of_ten(round(x))))
        axes.grid(visible=False, axis="x")
        axes.set_xlabel("KL divergence of an answer token, nats")
        axes.set_ylabel("answer tokens")
        legend_above(axes, 3)
        return figure.svg(title)


def by_position(answers: Sequence[Sequence[float]]) -> list[Position]:
    """Pool divergences by position in the answer, at least `TOKENS_PER_POINT` per point.

    Args:
        answers: the divergences of each answer's tokens, in order, in nats.

    Returns:
        Points in order, which together cover every token; a single one if there are fewer than
        `TOKENS_PER_POINT` tokens in all.
    """
    longest = max(map(len, answers), default=0)
    groups: list[tuple[int, int, list[float]]] = []
    first, pool = 1, []
    for index in range(longest):
        pool += [answer[index] for answer in answers if len(answer) > index]
        if len(pool) >= TOKENS_PER_POINT:
            groups.append((first, index + 1, pool))
            first, pool = index + 2, []
    if pool and groups:  # too few tokens for a point of their own join the last point
        start, _, values = groups.pop()
        groups.append((start, longest, values + pool))
    elif pool:
        groups.append((first, longest, pool))
    return [
        Position(a, b, len(v), fmean(v), median(v), float(np.percentile(v, 90)))
        for a, b, v in groups
    ]


def position_plot(name: str, title: str, points: Sequence[Position]) -> Markup:
    """Plot mean, median and 90th percentile of the divergence along the answer."""
    centers = [(point.first + point.last) / 2 for point in points]
    lines = [
        ("90th percentile", [point.p90 for point in points], SERIES[2], "^"),
        ("mean", [point.mean for point in points], SERIES[1], "o"),
        ("median", [point.median for point in points], SERIES[0], "s"),
    ]
    with SvgFigure(name, 300) as figure:
        axes = figure.axes
        for label, values, color, marker in lines:
            shown = [max(value, FLOOR) for value in values]
            axes.plot(centers, shown, marker=marker, ms=5, color=color, label=label)
        axes.set_yscale("log")
        log_ticks(axes)
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
        axes.set_xlabel("token of the answer")
        axes.set_ylabel("KL divergence, nats")
        legend_above(axes, 3)
        return figure.svg(title)


def layer_errors(layers: Sequence[Mapping[str, Any]]) -> list[LayerError]:
    """The layers of numbered blocks whose error is known, in the order of the record.

    Layers of the experts of a block are one, with the mean error.

    Args:
        layers: entries of the checkpoint's record, with `name` and perhaps `final_error`, the
            relative squared error.
    """
    errors: dict[tuple[str, int, str], list[float]] = {}
    for layer in layers:
        block, error = _BLOCK.fullmatch(layer["name"]), layer.get("final_error")
        if block and error is not None:
            stage, index, rest = block.groups()
            key = stage, int(index), _EXPERT.sub(".", rest)
            errors.setdefault(key, []).append(float(error))
    return [
        LayerError(stage, index, rest.rpartition(".")[2], fmean(values))
        for (stage, index, rest), values in errors.items()
    ]


def layer_plot(name: str, title: str, errors: Sequence[LayerError]) -> Markup:
    """Plot the error of each layer of one stage against its block, one line per kind of layer."""
    kinds = list(dict.fromkeys(error.kind for error in errors))
    styles = zip(kinds, cycle(SERIES), cycle(MARKERS), strict=False)
    with SvgFigure(name, 320) as figure:
        axes = figure.axes
        for kind, color, marker in styles:
            line = [error for error in errors if error.kind == kind]
            values = [max(error.error, FLOOR) for error in line]
            blocks = [error.block for error in line]
            axes.plot(
                blocks, values, marker=marker, ms=5, lw=1.3, color=color, label=plain(kind, 16)
            )
        axes.set_yscale("log")
        log_ticks(axes)
        axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
        axes.set_xlabel(f"block of {plain(errors[0].stage)}")
        axes.set_ylabel("relative squared error")
        legend_above(axes, 4)
        return figure.svg(title)


@dataclass(frozen=True)
class ParetoPoint:
    """One model in the plot of size against quality."""

    label: str
    size: float  # bytes
    quality: float
    on_front: bool
    is_base: bool = False


def pareto_plot(
    name: str, title: str, models: Sequence[ParetoPoint], quality: str, *, log: bool = False
) -> Markup:
    """Plot size against quality; a line joins the Pareto front.

    Args:
        name: prefix of identifiers, unique on a page.
        title: text alternative.
        models: sizes and qualities.
        quality: label of the vertical axis.
        log: whether that axis is logarithmic.
    """
    front = sorted((m.size / 1e6, m.quality) for m in models if m.on_front)
    with SvgFigure(name, 320) as figure:
        axes = figure.axes
        if front:
            axes.step(*zip(*front, strict=True), where="post", color=ACCENT, lw=1.3, zorder=1)
        for model in models:
            x = model.size / 1e6
            y = max(model.quality, FLOOR) if log else model.quality
            color = MUTED if model.is_base else ACCENT
            filled = color if model.on_front else PAPER
            mark = "s" if model.is_base else "o"
            axes.plot([x], [y], mark, ms=8, color=color, markerfacecolor=filled)
        if log:
            axes.set_yscale("log")
            log_ticks(axes)
        axes.margins(0.12, 0.18)
        axes.set_xlabel("weights, MB")
        axes.set_ylabel(quality)
        points = [(m.size / 1e6, max(m.quality, FLOOR) if log else m.quality) for m in models]
        place_labels(figure, points, [plain(model.label, LABEL_LIMIT) for model in models])
        return figure.svg(title)


def legend_above(axes: Axes, columns: int) -> None:
    """Place the legend above the axes."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=columns,
        borderaxespad=0.2,
        handlelength=1.6,
        columnspacing=1.2,
    )


def log_ticks(axes: Axes) -> None:
    """Label a logarithmic vertical axis by decades; with 2 and 5 too if its range is small."""
    low, high = axes.get_ylim()
    wide = math.log10(high / low) > 1.2
    subs = (1.0,) if wide else (1.0, 2.0, 5.0)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: _decade(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)
    axes.spines["left"].set_color(LINE)


def _decade(value: float) -> str:
    if value <= 0:
        return ""
    if 1e-3 <= value < 1e3:
        return f"{value:g}"
    exponent = math.log10(value)
    return power_of_ten(round(exponent)) if abs(exponent - round(exponent)) < 1e-9 else power(value)


def format_points(value: float) -> str:
    """A difference in points as the label of a tick."""
    return f"{value:+g}".replace("-", MINUS) if value else "0"
