"""Builds the page of several candidates: one row each, and size against quality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..tables.same_bytes import same_bytes_table, same_bytes_warnings
from ..tables.scores import candidate_table, pair_table
from ..words.criterion_words import criterion_words
from . import plots
from .render import Figure, render

Report = Mapping[str, Any]


def comparison_page(comparison: Report) -> str:
    """Render the page that compares several candidates.

    Args:
        comparison: content of `comparison.json`.

    Returns:
        A complete HTML document.
    """
    return render(
        "comparison.html.j2",
        comparison=comparison,
        candidate_may=criterion_words(comparison).candidate,
        candidates=candidate_table(comparison),
        unhealthy=[
            f"{name}, {bench}: {reason['text']}"
            for name, entry in comparison["candidates"].items()
            for bench, result in entry["benchmarks"].items()
            for reason in result["health_reasons"]
        ],
        figures=_pareto_figures(comparison),
        fewer_weights=bool(comparison.get("same_bytes")),
        same_bytes=same_bytes_table(comparison),
        same_bytes_warnings=same_bytes_warnings(comparison),
        pairs=pair_table(comparison),
    )


def _pareto_figures(comparison: Report) -> list[Figure]:
    """Size against the mean score, and against the divergence if it is known of all candidates."""
    entries, fronts = comparison["candidates"], comparison["pareto"]
    if fronts["mean_score"] is None:
        return []
    first = next(iter(entries.values()))
    base = plots.ParetoPoint(
        comparison["base"], first["size"]["base_bytes"], first["mean_score"]["base"], False, True
    )
    by_score = [
        plots.ParetoPoint(
            name,
            entry["size"]["candidate_bytes"],
            entry["mean_score"]["candidate"],
            name in fronts["mean_score"],
        )
        for name, entry in entries.items()
    ]
    figures = [
        Figure(
            plots.pareto_plot(
                "score", "Size of the weights against the mean score", [*by_score, base],
                "mean score, %",
            ),
            "Up and left is better. Filled and joined: the Pareto front, candidates to which no "
            "other one is superior in size and score. The square is the base.",
        )
    ]  # fmt: skip
    if fronts["kl_mean"] is None or len(entries) < 2:
        return figures
    by_kl = [
        plots.ParetoPoint(
            name,
            entry["size"]["candidate_bytes"],
            entry["fidelity"]["kl_mean"],
            name in fronts["kl_mean"],
        )
        for name, entry in entries.items()
    ]
    svg = plots.pareto_plot(
        "divergence", "Size of the weights against the divergence from the base", by_kl,
        "mean KL, nats", log=True,
    )  # fmt: skip
    caption = "Down and left is better. Divergence separates candidates with equal scores."
    return [*figures, Figure(svg, caption)]
