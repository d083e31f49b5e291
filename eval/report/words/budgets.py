"""Visual-token budgets in sentences: the choice, budgets out of order, and the method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...stats.verdict import Verdict
from ..tables.formatting import join_names, points

Result = Mapping[str, Any]


def budget_title(result: Result) -> str:
    """The headline of `pixels.json`: the smallest budget that passes on all benchmarks."""
    chosen, margin = result["smallest"]["all"], points(result["margin"])
    if chosen is None:
        return (
            f"No measured budget is shown to lose less than {margin} on every benchmark together "
            "with all larger ones."
        )
    return (
        f"{chosen} visual tokens per image are shown to lose less than {margin} on every benchmark."
    )


def budget_notes(result: Result) -> list[str]:
    """Notes on budgets that pass out of order, that change nothing, and on the published files."""
    notes = []
    smallest = {**result["smallest"]["benchmarks"], "all benchmarks": result["smallest"]["all"]}
    for name, chosen in smallest.items():
        entries = {
            row["budget"]: row if name == "all benchmarks" else row["benchmarks"][name]
            for row in result["budgets"]
        }
        below = [
            str(budget)
            for budget, entry in entries.items()
            if entry["verdict"] == Verdict.PASS
            and entry.get("affected") != 0
            and (chosen is None or budget < chosen)
        ]
        if below:
            notes.append(
                f"On {name} {join_names(below)} passes although a larger budget does not: a "
                "difference by chance, or too few questions at the larger one; it is not chosen."
            )
        elif not any(entry.get("affected", 1) for entry in entries.values()):
            notes.append(f"On {name} no image is affected by a budget: nothing was tested.")
    if result["without_effect"]:
        named = join_names([str(budget) for budget in result["without_effect"]])
        notes.append(f"Not measured, because they change no image: budgets {named}.")
    return notes


def budget_method() -> str:
    """The method in two sentences."""
    return (
        "All budgets answered the same questions, with all else equal; the verdicts are those of "
        "a comparison with the checkpoint's own setting. The budgets are tested from the largest "
        "down, and the choice is the last one before the first that does not pass, so that "
        "testing several does not raise the probability of a wrong choice."
    )
