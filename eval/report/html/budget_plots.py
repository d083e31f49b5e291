"""The figures of visual-token budgets: difference, divergence and time against visual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from markupsafe import Markup
from matplotlib.ticker import FuncFormatter

from .plots import FLOOR, MARKERS, format_points, legend_above, log_ticks
from .svg import BAD, MUTED, SERIES, SvgFigure, plain

Result = Mapping[str, Any]
SHIFT = 0.006  # of the range of tokens, between the intervals of two benchmarks


def _affected(result: Result, name: str) -> list[Mapping[str, Any]]:
    """Entries of a benchmark at the budgets that change one of its images."""
    entries = (row["benchmarks"][name] for row in result["budgets"])
    return [entry for entry in entries if entry["affected"]]


def difference_plot(name: str, title: str, result: Result) -> Markup:
    """Plot the paired difference with its 95 % interval against the visual tokens of an image.

    Args:
        name: prefix of identifiers, unique on a page.
        title: text alternative.
        result: content of `pixels.json`.
    """
    benchmarks = result["base"]["benchmarks"]
    most = max((own["visual_tokens"] or 0.0 for own in benchmarks.values()), default=0.0)
    with SvgFigure(name, 320) as figure:
        axes = figure.axes
        styles = zip(benchmarks, cycle(SERIES), cycle(MARKERS), strict=False)
        for number, (benchmark, color, marker) in enumerate(styles):
            if not (entries := _affected(result, benchmark)):
                continue
            shift = number * SHIFT * most
            x = [entry["visual_tokens"] + shift for entry in entries]
            y = [entry["delta"] for entry in entries]
            below = [e["delta"] - e["ci95"][0] for e in entries]
            above = [e["ci95"][1] - e["delta"] for e in entries]
            own = benchmarks[benchmark]["visual_tokens"]
            axes.plot([own + shift, *x], [0.0, *y], lw=1, color=color, alpha=0.5)
            axes.errorbar(x, y, yerr=[below, above], fmt=marker, ms=6, lw=1.4, capsize=3,
                          color=color, label=plain(benchmark, 28))  # fmt: skip
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.axhline(-result["margin"], color=BAD, linewidth=1, linestyle=(0, (4, 3)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: format_points(y)))
        axes.set_xlabel("visual tokens per image, mean")
        axes.set_ylabel("budget minus own setting, points")
        legend_above(axes, 2)
        return figure.svg(title)


def divergence_plot(name: str, title: str, result: Result) -> Markup:
    """Plot the mean divergence of answer tokens (nats, logarithmic) against visual tokens."""
    with SvgFigure(name, 300) as figure:
        axes = figure.axes
        styles = zip(result["base"]["benchmarks"], cycle(SERIES), cycle(MARKERS), strict=False)
        for benchmark, color, marker in styles:
            entries = [e for e in _affected(result, benchmark) if e["kl_mean"] is not None]
            if not entries:
                continue
            x = [entry["visual_tokens"] for entry in entries]
            y = [max(entry["kl_mean"], FLOOR) for entry in entries]
            axes.plot(x, y, marker=marker, ms=6, lw=1.3, color=color, label=plain(benchmark, 28))
        axes.set_yscale("log")
        log_ticks(axes)
        axes.set_xlabel("visual tokens per image, mean")
        axes.set_ylabel("mean KL, nats")
        legend_above(axes, 2)
        return figure.svg(title)


def time_plot(name: str, title: str, result: Result) -> Markup:
    """Plot the median times of a question, in ms, against visual tokens."""
    rows: Sequence[Mapping[str, Any]] = result["budgets"]
    x = [result["base"]["visual_tokens"], *(row["visual_tokens"] for row in rows)]
    kinds = {
        "first_token_seconds": "first token",
        "prefill_seconds": "prefill",
        "vision_seconds": "image",
    }
    with SvgFigure(name, 300) as figure:
        axes = figure.axes
        for (kind, label), color, marker in zip(kinds.items(), SERIES, MARKERS, strict=False):
            seconds = [rows[0]["seconds"][kind]["base"]]
            seconds += [row["seconds"][kind]["candidate"] for row in rows]
            y = [1000 * value for value in seconds]
            axes.plot(x, y, marker=marker, ms=6, lw=1.3, color=color, label=label)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("visual tokens per image, mean")
        axes.set_ylabel("ms per question, median")
        legend_above(axes, 3)
        return figure.svg(title)
