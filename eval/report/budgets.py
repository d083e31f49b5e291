"""The visual-token budgets as Markdown and as a few lines of console text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...bench.machine_load import describe_load
from .tables.budgets import budget_choice_table, budget_cost_table, budget_score_table
from .tables.columns import console_table, markdown_notes, markdown_table
from .tables.formatting import SYNTHETIC_NOTE, escape
from .words.budgets import budget_method, budget_notes, budget_title

TEXT_LIMIT = 2000  # characters of a sentence outside of tables

Result = Mapping[str, Any]


def timing_note(result: Result) -> str:
    """Method, time and machine load of the times in one sentence."""
    timing = result["timing"]
    return (
        f"Times: all settings answered the same {timing['questions']} questions in alternation, "
        f"{timing['batches']} batches of {timing['batch_size']}, "
        f"{describe_load(timing['load'])}."
    )


def render_budgets(result: Result) -> str:
    """Render `pixels.json` as Markdown."""
    tables = {
        "## Scores": budget_score_table(result),
        "## Divergence and time": budget_cost_table(result),
        "## Smallest budget that passes": budget_choice_table(result),
    }
    parts = [
        f"# Visual-token budgets of {escape(result['model'])}"
        + (" (synthetic benchmarks)" if result["synthetic"] else ""),
        escape(budget_title(result), TEXT_LIMIT),
        f"**Synthetic**: {SYNTHETIC_NOTE}." if result["synthetic"] else "",
        *(escape(note, TEXT_LIMIT) for note in budget_notes(result)),
        escape(budget_method(), TEXT_LIMIT),
    ]
    for head, table in tables.items():
        parts += [head, markdown_table(table), markdown_notes(table)]
    parts += [timing_note(result), f"```\n{result['command']}\n```"]
    return "\n\n".join(part for part in parts if part) + "\n"


def summarize_budgets(result: Result) -> str:
    """Scores, costs and choice as console text."""
    tables = (budget_score_table, budget_cost_table, budget_choice_table)
    lines = [text for table in tables for text in (console_table(table(result)), "")]
    if result["synthetic"]:
        lines.append(f"synthetic: {SYNTHETIC_NOTE}")
    lines += [f"note: {note}" for note in budget_notes(result)]
    lines += [timing_note(result), budget_title(result)]
    if result["written"]:
        lines.append(f"checkpoint: {result['written']}")
    return "\n".join(lines)
