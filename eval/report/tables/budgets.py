"""Tables of visual-token budgets: one row per budget and benchmark, one per budget, the choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from ..words.verdict import verdict_label
from . import formatting as fmt
from .columns import BENCHMARK, Cell, Column, DataTable, Row, at, named_rows
from .scores import delta_cell

Result = Mapping[str, Any]
OWN = "own"
"""Label of the checkpoint's own setting."""


def _verdict(row: Row) -> Cell | None:
    if "verdict" not in row:
        return None
    if row.get("affected") == 0:
        return Cell("no image affected")
    label = verdict_label(row["verdict"], row["scope"])
    return Cell(label, f"verdict {row['verdict'].lower()}")


def _delta(row: Row) -> Cell | None:
    return delta_cell(row) if "ci95" in row else None


def _affected(row: Row) -> str | None:
    return f"{row['affected']} of {row['images']}" if "budget_tokens" in row else None


BUDGET_SCORES = (
    BENCHMARK,
    Column("budget", at("label"), style="number",
           note="Largest number of visual tokens of an image; own: the checkpoint's setting."),
    Column("visual tokens", at("visual_tokens"), fmt.fixed(1),
           "Mean number of visual tokens of an image, after the merger."),
    Column("affected", _affected, note="Images that have another size than with the own setting."),
    Column("score", at("score"), fmt.fixed(2, console=1), "In percent."),
    Column("Δ", _delta, fmt.difference(2, console=1), "Budget minus own setting, in points."),
    Column("95 % interval", at("ci95"), fmt.span(2, console=1),
           "Two-sided confidence interval of Δ, paired over the questions, in points."),
    Column("KL", at("kl_mean"), fmt.divergence(),
           "Mean divergence from the answers with the own setting, nats per answer token."),
    Column("verdict", _verdict,
           note="Whether the loss is shown to stay below the margin (PASS), to exceed it (FAIL), "
           "or neither.", style="mid"),
)  # fmt: skip


def budget_score_table(result: Result) -> DataTable:
    """One row per benchmark and budget, the checkpoint's own setting first.

    Args:
        result: content of `pixels.json`.
    """
    rows: list[dict[str, Any]] = []
    for name, own in result["base"]["benchmarks"].items():
        entries = {row["budget"]: row["benchmarks"][name] for row in result["budgets"]}
        marks = {k: next(iter(entries.values()))[k] for k in ("synthetic", "limited")}
        rows.append({"name": name, "label": OWN, **marks, **own})
        scope = result["scope"]
        rows += [
            {
                **entry,
                "name": name,
                "label": str(budget),
                "budget_tokens": budget,
                "score": entry["candidate"],
                "scope": scope,
            }
            for budget, entry in entries.items()
        ]
    return DataTable("Scores at every visual-token budget", BUDGET_SCORES, rows)


def _page(row: Row) -> Cell:
    return Cell(row["label"], href=f"report/{quote(row['label'])}/report.html" * ("seconds" in row))


BUDGET_COSTS = (
    Column("budget", _page, note="Links to the budget's own report.", style="name"),
    Column("visual tokens", at("visual_tokens"), fmt.fixed(1),
           "Mean number of visual tokens of an image over all benchmarks."),
    Column("largest area", at("max_pixels"), fmt.COUNT, "Of an image, in pixels."),
    Column("KL", at("kl_mean"), fmt.divergence(), "Over all benchmarks, nats per answer token."),
    Column("image, ms", at("ms", "vision_seconds"), fmt.fixed(2),
           "From the image file to its features, per question; median."),
    Column("prefill, ms", at("ms", "prefill_seconds"), fmt.fixed(2),
           "From image features to the first token, per question; median."),
    Column("first token, ms", at("ms", "first_token_seconds"), fmt.fixed(2),
           "Both together; median."),
    Column("of own", at("seconds", "first_token_seconds", "ratio"), fmt.fixed(2),
           "Time to the first token relative to the own setting: median of the ratios within a "
           "batch."),
    Column("spread", at("seconds", "first_token_seconds", "spread"),
           fmt.uniform(lambda ends: f"{ends[0]:.2f} to {ends[1]:.2f}"),
           "Smallest and largest ratio."),
    Column("verdict", _verdict, note="Over all benchmarks.", style="mid"),
)  # fmt: skip


def budget_cost_table(result: Result) -> DataTable:
    """One row per budget, the checkpoint's own setting first; times are medians."""
    kinds = result["budgets"][0]["seconds"]
    own = {kind: 1000 * result["budgets"][0]["seconds"][kind]["base"] for kind in kinds}
    rows = [{"label": OWN, "ms": own, **result["base"]}]
    for row in result["budgets"]:
        times = {kind: 1000 * row["seconds"][kind]["candidate"] for kind in kinds}
        rows.append({**row, "label": str(row["budget"]), "ms": times, "scope": result["scope"]})
    return DataTable("Divergence and time at every visual-token budget", BUDGET_COSTS, rows)


def _choice(row: Row) -> str:
    return "none" if row["budget"] is None else str(row["budget"])


BUDGET_CHOICE = (
    Column("benchmark", at("name"), style="name"),
    Column("smallest budget that passes", _choice,
           note="Passes together with all larger measured ones."),
)  # fmt: skip


def budget_choice_table(result: Result) -> DataTable:
    """The smallest budget that passes, for each benchmark and for all together."""
    smallest = result["smallest"]
    named = {**smallest["benchmarks"], "all benchmarks": smallest["all"]}
    rows = named_rows((name, {"budget": budget}) for name, budget in named.items())
    return DataTable("Smallest budget that passes", BUDGET_CHOICE, rows)
