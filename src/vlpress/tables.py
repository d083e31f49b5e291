"""Results as text tables for people; programs use ``--json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from .progress import format_bytes


def headline(report: Mapping[str, Any]) -> str:
    """Draw a report (``report.json`` as read) as one table with its verdict.

    Scores are percentages; the interval is the two-sided 95 % interval of the paired difference.
    """
    rows = [
        [
            name,
            row["n"],
            f"{row['base']:.1f}",
            f"{row['candidate']:.1f}",
            f"{row['delta']:+.1f}",
            "[{:+.1f}, {:+.1f}]".format(*row["ci95"]),
            f"{row['mcnemar_p']:.3g}",
            f"{row['flips']['right_to_wrong']} / {row['flips']['wrong_to_right']}",
            row["verdict"],
        ]
        for name, row in report["benchmarks"].items()
    ]
    head = [
        "benchmark",
        "n",
        "base",
        "candidate",
        "delta",
        "95 % interval",
        "p",
        "lost / won",
        "verdict",
    ]
    lines = [tabulate(rows, head, disable_numparse=True, stralign="right"), ""]
    if report.get("synthetic"):
        lines.append("synthetic: these benchmarks are drawings made by vlpress")
    lines += [*_fidelity(report), *_size(report)]
    lines.append(f"verdict: {report['verdict']} (margin {report['margin']:g} points)")
    return "\n".join(lines)


def _fidelity(report: Mapping[str, Any]) -> list[str]:
    fidelity = report.get("fidelity")
    if fidelity is None:
        return []
    return [
        f"fidelity: KL {fidelity['kl_mean']:.4f} nats mean, "
        f"{fidelity['kl_p99']:.3f} at the 99th percentile; "
        f"same top token {100 * fidelity['top1_agreement']:.1f} % of {fidelity['tokens']} tokens"
    ]


def _size(report: Mapping[str, Any]) -> list[str]:
    size = report.get("size") or {}
    if not size.get("base_bytes") or not size.get("candidate_bytes"):
        return []
    return [
        f"size: {format_bytes(size['base_bytes'])} -> {format_bytes(size['candidate_bytes'])}"
        f" ({size['bits_per_weight']:.2f} bits per weight)"
    ]
