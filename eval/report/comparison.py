"""Several candidates against one base, and against each other.

The differences between candidates are paired as well: on scores question by question, on
divergences over the mean of each question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from ...common.atomic import write_json, write_text
from ..fidelity.divergences import divergence_interval, kind_of, unit_divergences
from ..results import SCHEMA, StoredRun, StoredTask, read_fidelity, read_run
from ..stats.paired import paired_difference, picture_clusters
from ..stats.statistics import overall
from ..stats.verdict import Verdict
from .html import comparison_page
from .markdown import render_comparison
from .pareto import pareto_front
from .report import MARGIN, compare


def compare_many(
    base_dir: str | Path,
    cand_dirs: Sequence[str | Path],
    out_dir: str | Path,
    *,
    margin: float = MARGIN,
    across_engines: bool = False,
) -> dict[str, Any]:
    """Judge several candidates: a report folder for each, and their differences.

    Args:
        base_dir: evaluation folder of the original model.
        cand_dirs: evaluation folders of the candidates.
        out_dir: gets a folder per candidate, and `comparison.json`, `.md` and `.html`.
        margin: points that a candidate may lose.
        across_engines: as `compare`.

    Returns:
        The content of `comparison.json`: headline per candidate, and for each pair of candidates
        the paired differences of scores (points) and divergences (nats).

    Raises:
        FileNotFoundError: a folder is no evaluation.
        ValueError: as `compare`, or two candidate folders that cannot be told apart by name.
    """
    out = Path(out_dir)
    names = _labels([Path(p) for p in cand_dirs])
    reports = {
        name: compare(
            base_dir,
            path,
            out / name,
            margin=margin,
            across_engines=across_engines,
            overview="../comparison.html",
        )
        for name, path in zip(names, cand_dirs, strict=True)
    }
    runs = {name: read_run(path) for name, path in zip(names, cand_dirs, strict=True)}
    comparison = {
        "schema": SCHEMA,
        "base": read_run(base_dir).name,
        "margin": margin,
        "verdict": overall([Verdict(report["verdict"]) for report in reports.values()]),
        "verdict_reasons": [
            f"{name}: {reason}"
            for name, report in reports.items()
            for reason in report["verdict_reasons"]
        ],
        "synthetic": any(report["synthetic"] for report in reports.values()),
        "candidates": {name: _brief(report) for name, report in reports.items()},
        "pareto": _fronts(reports),
        "pairs": [
            {"first": a, "second": b, "benchmarks": _pair(runs[a], runs[b])}
            for a, b in combinations(names, 2)
        ],
    }
    write_text(out / "comparison.md", render_comparison(comparison))
    write_text(out / "comparison.html", comparison_page(comparison))
    write_json(out / "comparison.json", comparison)
    return comparison


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ; runs all call their folders alike."""
    parts = [path.resolve().parts[1:] for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["-".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise ValueError(
        f"candidates {', '.join(str(p) for p in paths)} are not all different; "
        "give each folder once"
    )


def _brief(report: Mapping[str, Any]) -> dict[str, Any]:
    keys = ["synthetic", "n", "base", "candidate", "delta", "ci95", "mcnemar_p", "verdict"]
    keys += ["chance", "health_reasons"]
    return {
        "candidate": report["candidate"],
        "verdict": report["verdict"],
        "verdict_reasons": report["verdict_reasons"],
        "benchmarks": {
            name: {key: entry[key] for key in keys} for name, entry in report["benchmarks"].items()
        },
        "mean_score": {
            side: fmean(entry[side] for entry in report["benchmarks"].values())
            for side in ("base", "candidate")
        },
        "fidelity": report["fidelity"]
        and {k: v for k, v in report["fidelity"].items() if k != "per_benchmark"},
        "size": report["size"],
        "notes": report["notes"],
    }


def _fronts(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str] | None]:
    """Candidates that no other one beats in size and in quality, by each measure of quality.

    None where a size or a measure is not known of all of them.
    """
    names = list(reports)
    sizes = [report["size"]["candidate_bytes"] for report in reports.values()]
    costs = {
        "mean_score": [-_brief(report)["mean_score"]["candidate"] for report in reports.values()],
        "kl_mean": [(report["fidelity"] or {}).get("kl_mean") for report in reports.values()],
    }
    return {
        measure: None
        if None in values or None in sizes
        else [names[place] for place in pareto_front(list(zip(sizes, values, strict=True)))]
        for measure, values in costs.items()
    }


def _pair(first: StoredRun, second: StoredRun) -> dict[str, Any]:
    """Differences second minus first on each benchmark."""
    found: dict[str, Any] = {}
    for name, task in first.tasks.items():
        other = second.tasks[name]
        pairs = list(zip(task.score().units, other.score().units, strict=True))
        of_unit = picture_clusters(task.items)
        clusters = [of_unit[unit.id] for unit, _ in pairs]
        difference = paired_difference(pairs, clusters)
        found[name] = {"n": len(pairs), **difference, **_kl_difference(task, other)}
    return found


def _kl_difference(first: StoredTask, second: StoredTask) -> dict[str, Any]:
    left, right = read_fidelity(first), read_fidelity(second)
    if left is None or right is None:
        return {"kl_delta": None, "kl_delta_ci95": None}
    kind = kind_of([*left.values(), *right.values()])
    a = unit_divergences(first.items, left, kind)
    b = unit_divergences(second.items, right, kind)
    values = [b[unit] - a[unit] for unit in a if unit in b]
    interval = divergence_interval(values)
    return {
        "kl_delta": sum(values) / len(values) if values else None,
        "kl_delta_ci95": interval and [interval.low, interval.high],
    }
