"""The report and the comparison as a few lines of console text, in ASCII."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ...common.progress import format_bytes
from .tables.columns import DataTable, console_table
from .tables.formatting import SYNTHETIC_NOTE
from .tables.same_bytes import same_bytes_warnings
from .tables.scores import benchmark_table, candidate_score_table
from .words.criterion_words import criterion_caveat, criterion_words
from .words.divergence import vocabulary_caveats
from .words.drafts import as_draft_text
from .words.sentences import shown_warnings
from .words.verdict import Scope, verdict_label

Report = Mapping[str, Any]


def summarize_report(report: Report) -> str:
    """Scores and verdict of one candidate.

    Args:
        report: content of `report.json`. Scores are percentages; the interval is the two-sided
            95 % interval of the paired difference.
    """
    table = benchmark_table({"benchmarks": report["benchmarks"]})
    caveat = criterion_caveat(report)
    notes = [f"note: {note}" for note in [*report.get("notes", ()), *([caveat] if caveat else [])]]
    details = [*_fidelity(report), *_size(report), *_speed(report)]
    warnings = [*report.get("warnings", ()), *shown_warnings(report.get("calibration"))]
    details += [f"warning: {warning}" for warning in warnings]
    return "\n".join(_lines(table, report, [*notes, *details]))


def summarize_comparison(comparison: Report) -> str:
    """Scores of several candidates, one line per candidate and benchmark, and the verdict.

    Args:
        comparison: content of `comparison.json`.
    """
    notes = [
        f"note on {name}: {note}"
        for name, entry in comparison["candidates"].items()
        for note in entry.get("notes", ())
    ]
    notes += [f"warning: {warning}" for warning in same_bytes_warnings(comparison)]
    return "\n".join(_lines(candidate_score_table(comparison), comparison, notes))


def _lines(table: DataTable, report: Report, details: list[str]) -> Iterator[str]:
    yield console_table(table)
    yield ""
    if report.get("synthetic"):
        yield f"synthetic: {SYNTHETIC_NOTE}"
    yield from details
    yield from (f"reason: {reason}" for reason in report.get("verdict_reasons", ()))
    label = verdict_label(report["verdict"], report.get("scope", Scope.FULL))
    yield f"verdict: {label} ({criterion_words(report).short})"
    if "headline" in report:
        yield report["headline"]
    yield from (f"next: {step}" for step in report.get("next_steps", ()))


def _fidelity(report: Report) -> Iterator[str]:
    if fidelity := report.get("fidelity"):
        yield (
            f"fidelity: KL {fidelity['kl_mean']:.4f} nats mean, "
            f"{fidelity['kl_p99']:.3f} at the 99th percentile; same top token "
            f"{100 * fidelity['top1_agreement']:.1f} % of {fidelity['tokens']} tokens"
        )
        yield from vocabulary_caveats(report)
    if text := as_draft_text(report):
        yield text[0].lower() + text[1:-1]


def _size(report: Report) -> Iterator[str]:
    size = report.get("size") or {}
    if size.get("base_bytes") and size.get("candidate_bytes"):
        yield (
            f"size: {format_bytes(size['base_bytes'])} -> {format_bytes(size['candidate_bytes'])}"
            f" ({size['bits_per_weight']:.2f} bits per weight)"
        )


def _speed(report: Report) -> Iterator[str]:
    """Ratios of throughput, if both models were timed in alternation."""
    if rates := report.get("speed", {}).get("alternating"):
        names = {"items": "questions", "prefill_tokens": "prefill", "decode_tokens": "decode"}
        parts = []
        for name, label in names.items():
            rate = rates[f"{name}_per_second"]
            low, high = rate["spread"]
            parts.append(f"{label} {rate['ratio']:.2f} ({low:.2f} to {high:.2f})")
        yield f"speed, candidate / base in alternation: {', '.join(parts)}"
