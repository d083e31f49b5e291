"""Table of candidates with fewer weights beside others of the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import formatting as fmt
from .columns import BENCHMARK, Column, DataTable, at

Comparison = Mapping[str, Any]

COLUMNS = (
    Column("candidate", at("candidate"), style="name"),
    Column("weights", at("bytes"), fmt.BYTES, "Size of the checkpoint."),
    Column("beside", at("against"), style=""),
    Column("kind", at("kind"), style="",
           note="The largest candidate that only quantizes the base and has at most the same "
           "bytes, or one of the same bytes that removes channels or layers at random."),
    Column("its weights", at("against_bytes"), fmt.BYTES),
    BENCHMARK,
    Column("Δ", at("delta"), fmt.difference(2), "Candidate minus the other, in points."),
    Column("95 % interval", at("ci95"), fmt.span(2),
           "Confidence interval of the paired difference."),
    Column("Δ KL", at("kl_delta"), fmt.difference(4, markdown=5),
           "Candidate minus the other, nats, mean over questions: below 0 the candidate is nearer "
           "to the base."),
    Column("95 % interval of Δ KL", at("kl_delta_ci95"), fmt.span(4, markdown=5),
           "Bootstrap over questions."),
)  # fmt: skip


def same_bytes_table(comparison: Comparison) -> DataTable | None:
    """One row per candidate, other one and benchmark; None without such a candidate."""
    rows = [
        {**entry, "name": name, "synthetic": comparison["synthetic"], **values}
        for entry in comparison.get("same_bytes", ())
        for name, values in entry["benchmarks"].items()
    ]
    return DataTable("Fewer weights beside the same bytes", COLUMNS, rows) if rows else None


def same_bytes_warnings(comparison: Comparison) -> list[str]:
    """Reasons why a removal does not pay, or cannot be judged."""
    entries = comparison.get("same_bytes", ())
    return [entry["warning"] for entry in entries if entry["warning"] is not None]
