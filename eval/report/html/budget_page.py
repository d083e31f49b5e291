"""Builds the page of visual-token budgets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..budgets import timing_note
from ..tables.budgets import budget_choice_table, budget_cost_table, budget_score_table
from ..tables.formatting import points
from ..words.budgets import budget_method, budget_notes, budget_title
from .budget_plots import difference_plot, divergence_plot, time_plot
from .render import Figure, render

Result = Mapping[str, Any]


def budget_page(result: Result) -> str:
    """Render `pixels.json` as a complete HTML document."""
    return render(
        "pixels.html.j2",
        result=result,
        title=budget_title(result),
        margin=points(result["margin"]),
        notes=budget_notes(result),
        method=budget_method(),
        scores=budget_score_table(result),
        costs=budget_cost_table(result),
        choice=budget_choice_table(result),
        timing=timing_note(result),
        figures=budget_figures(result),
        time=time_figure(result),
    )


def budget_figures(result: Result) -> list[Figure]:
    """Scores and divergences against visual tokens."""
    return [
        Figure(
            difference_plot("difference", "Change in score against visual tokens", result),
            "Paired differences with their 95 % intervals, shifted a little against each other. "
            f"Dashed: the allowed loss of {points(result['margin'])}.",
        ),
        Figure(
            divergence_plot("divergence", "Divergence against visual tokens", result),
            "Divergence from the distributions with the checkpoint's own setting, along its "
            "answers.",
        ),
    ]


def time_figure(result: Result) -> Figure:
    """Times against visual tokens."""
    svg = time_plot("time", "Time of a question against visual tokens", result)
    return Figure(svg, "Medians; image: from the file to its features, prefill: from these on.")
