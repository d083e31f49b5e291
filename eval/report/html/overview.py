"""The page of several candidates: one row each, and size against quality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import plots, scores
from .formatting import count_points
from .render import Figure, render

Report = Mapping[str, Any]


def comparison_page(comparison: Report) -> str:
    """The page that sets several candidates side by side.

    Args:
        comparison: content of `comparison.json`.
    """
    return render(
        "comparison.html.j2",
        comparison=comparison,
        margin=count_points(comparison["margin"]),
        candidates=scores.candidates(comparison),
        unhealthy=[
            f"{name}, {bench}: {reason['text']}"
            for name, entry in comparison["candidates"].items()
            for bench, found in entry["benchmarks"].items()
            for reason in found["health_reasons"]
        ],
        figures=_choices(comparison),
        pairs=scores.pairs(comparison),
    )


def _choices(comparison: Report) -> list[Figure]:
    """Size against the mean score, and against the divergence where every candidate has it."""
    entries, fronts = comparison["candidates"], comparison["pareto"]
    if fronts["mean_score"] is None:
        return []
    first = next(iter(entries.values()))
    base = plots.Choice(
        comparison["base"], first["size"]["base_bytes"], first["mean_score"]["base"], False, True
    )
    by_score = [
        plots.Choice(
            name,
            entry["size"]["candidate_bytes"],
            entry["mean_score"]["candidate"],
            name in fronts["mean_score"],
        )
        for name, entry in entries.items()
    ]
    figures = [
        Figure(
            plots.choice_plot(
                "score", "Size of the weights against the mean score", [*by_score, base],
                "mean score, %",
            ),
            "Up and left is better. Filled and joined: no other candidate is at least as small and "
            "at least as good (Pareto front). The square is the base.",
        )
    ]  # fmt: skip
    if fronts["kl_mean"] is None:
        return figures
    by_kl = [
        plots.Choice(
            name,
            entry["size"]["candidate_bytes"],
            entry["fidelity"]["kl_mean"],
            name in fronts["kl_mean"],
        )
        for name, entry in entries.items()
    ]
    svg = plots.choice_plot(
        "divergence", "Size of the weights against the divergence from the base", by_kl,
        "mean KL, nats", log=True,
    )  # fmt: skip
    caption = "Down and left is better. The divergence tells candidates apart that score alike."
    return [*figures, Figure(svg, caption)]
