"""The scores section of a checkpoint's model card, from the report of its evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .tables.columns import DataTable, markdown_table, named_rows
from .tables.formatting import SYNTHETIC_NOTE
from .tables.scores import SCORES
from .words.criterion_words import criterion_words

HEADS = ("benchmark", "n", "base", "candidate", "Δ", "95 % interval", "verdict")


def scores_section(report: Mapping[str, Any]) -> str:
    """Describe the scores of a checkpoint in Markdown.

    Args:
        report: content of `report.json`.
    """
    columns = tuple(column for column in SCORES if column.head in HEADS)
    table = DataTable("Scores", columns, named_rows(report["benchmarks"].items()))
    lines = [
        "## Scores",
        f"Verdict: **{report['verdict']}** ({criterion_words(report).short}) against the original "
        "on the same questions. Scores are in percent, intervals paired, in points.",
        f"The benchmarks are synthetic: {SYNTHETIC_NOTE}." if report["synthetic"] else "",
        markdown_table(table),
    ]
    if fidelity := report.get("fidelity"):
        lines.append(
            f"Mean KL divergence from the original: {fidelity['kl_mean']:.2g} nats per answer "
            f"token ({fidelity['tokens']} tokens)."
        )
    return "\n\n".join(line for line in lines if line)
