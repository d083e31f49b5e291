"""Compare several candidates with one base, and with each other.

Differences between candidates are paired too: scores question by question, divergences by the
mean of each question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from ...common.atomic import write_json, write_text
from ..config import MARGIN
from ..fidelity.divergences import (
    are_comparable,
    divergence_interval,
    find_kl_kind,
    unit_divergences,
)
from ..results import SCHEMA, StoredRun, StoredTask, read_fidelity, read_run
from ..stats.criterion import MARGIN_CRITERION, Criterion
from ..stats.paired import image_clusters, paired_difference
from ..stats.statistics import combine_verdicts
from ..stats.verdict import Verdict
from .markdown import render_comparison
from .report import compare
from .sections.same_bytes import same_bytes_section
from .words.criterion_words import criterion_words
from .words.verdict import comparison_steps, comparison_title


def compare_many(
    base_dir: str | Path,
    cand_dirs: Sequence[str | Path],
    out_dir: str | Path,
    *,
    margin: float = MARGIN,
    criterion: Criterion = MARGIN_CRITERION,
    across_engines: bool = False,
    across_pixels: bool = False,
) -> dict[str, Any]:
    """Judge several candidates: write a report folder for each, and their differences.

    Args:
        base_dir: evaluation folder of the original model.
        cand_dirs: evaluation folders of the candidates.
        out_dir: receives a folder per candidate, and `comparison.json`, `.md` and `.html`.
        margin: allowed loss in points, in [0, 100).
        criterion: as in `compare`.
        across_engines: as in `compare`.
        across_pixels: as in `compare`.

    Returns:
        The content of `comparison.json`: scores and verdict per candidate, for each pair of
        candidates the paired differences of scores (points) and divergences (nats), and those of
        candidates with fewer weights beside others of the same bytes.

    Raises:
        FileNotFoundError: a folder is not an evaluation.
        ValueError: as in `compare`, or a candidate folder is given twice.
    """
    out = Path(out_dir)
    names = _labels([Path(p) for p in cand_dirs])
    reports = {
        name: compare(
            base_dir,
            path,
            out / name,
            margin=margin,
            criterion=criterion,
            across_engines=across_engines,
            across_pixels=across_pixels,
            overview="../comparison.html",
        )
        for name, path in zip(names, cand_dirs, strict=True)
    }
    runs = {name: read_run(path) for name, path in zip(names, cand_dirs, strict=True)}
    base = read_run(base_dir)
    pairs = [
        {"first": a, "second": b, "benchmarks": _pair(runs[a], runs[b])}
        for a, b in combinations(names, 2)
    ]
    same_bytes = same_bytes_section(base, runs, pairs)
    comparison = {
        "schema": SCHEMA,
        "base": base.name,
        "criterion": criterion,
        "margin": margin if criterion == MARGIN_CRITERION else None,
        "verdict": combine_verdicts([Verdict(report["verdict"]) for report in reports.values()]),
        **_words(list(reports.values())),
        "verdict_reasons": [
            f"{name}: {reason}"
            for name, report in reports.items()
            for reason in report["verdict_reasons"]
        ],
        "synthetic": any(report["synthetic"] for report in reports.values()),
        "candidates": {name: _brief(report) for name, report in reports.items()},
        "pareto": _fronts(reports),
        "pairs": pairs,
        **({"same_bytes": same_bytes} if same_bytes else {}),
    }
    write_text(out / "comparison.md", render_comparison(comparison))
    from .html import comparison_page  # imports matplotlib, a third of a second

    write_text(out / "comparison.html", comparison_page(comparison))
    write_json(out / "comparison.json", comparison)
    return comparison


def _words(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Headline and next steps; all candidates answered the same questions."""
    verdicts, scope = [report["verdict"] for report in reports], reports[0]["scope"]
    return {
        "scope": scope,
        "headline": comparison_title(verdicts, scope, criterion_words(reports[0])),
        "next_steps": comparison_steps(verdicts, scope),
    }


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest trailing parts of the paths that differ: runs use the same folder names."""
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
    keys += ["chance", "health_reasons", "limited", "questions_still_needed", "flips"]
    return {
        "candidate": report["candidate"],
        "verdict": report["verdict"],
        "verdict_reasons": report["verdict_reasons"],
        **{key: report[key] for key in ("scope", "headline", "reason", "next_steps")},
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
    """The Pareto front of size and quality, for each measure of quality.

    None if a size or the measure is unknown for one of the candidates, or the divergences are over
    different tokens.
    """
    names = list(reports)
    sizes = [report["size"]["candidate_bytes"] for report in reports.values()]
    costs = {
        "mean_score": [-_brief(report)["mean_score"]["candidate"] for report in reports.values()],
        "kl_mean": [(report["fidelity"] or {}).get("kl_mean") for report in reports.values()],
    }
    kinds = {report["fidelity"]["kl_kind"] for report in reports.values() if report["fidelity"]}
    if not all(are_comparable(a, b) for a, b in combinations(kinds, 2)):
        costs["kl_mean"] = [None]  # over different vocabularies
    return {
        measure: None
        if None in values or None in sizes
        else [names[i] for i in pareto_front(list(zip(sizes, values, strict=True)))]
        for measure, values in costs.items()
    }


def pareto_front(costs: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto-optimal points, in the order of the first cost.

    A point is dominated if another one is at most as large in both costs and smaller in one. Equal
    points do not dominate each other.

    Args:
        costs: two costs of each point, to be minimized: negate a quantity to be maximized.

    Example:
        >>> pareto_front([(2, 1), (1, 3), (3, 1), (2, 2)])
        [1, 0]
    """
    order = sorted(range(len(costs)), key=lambda index: costs[index])
    front: list[int] = []
    for index in order:
        if not front or costs[index][1] < costs[front[-1]][1] or costs[index] == costs[front[-1]]:
            front.append(index)
    return front


def _pair(first: StoredRun, second: StoredRun) -> dict[str, Any]:
    """Differences second minus first on each benchmark."""
    differences: dict[str, Any] = {}
    for name, task in first.tasks.items():
        other = second.tasks[name]
        pairs = list(zip(task.score().units, other.score().units, strict=True))
        cluster_of = image_clusters(task.items)
        clusters = [cluster_of[unit.id] for unit, _ in pairs]
        difference = paired_difference(pairs, clusters)
        differences[name] = {"n": len(pairs), **difference, **_kl_difference(task, other)}
    return differences


def _kl_difference(first: StoredTask, second: StoredTask) -> dict[str, Any]:
    left, right = read_fidelity(first), read_fidelity(second)
    if left is None or right is None:
        return {"kl_delta": None, "kl_delta_ci95": None}
    if not are_comparable(find_kl_kind(left.values()), find_kl_kind(right.values())):
        return {"kl_delta": None, "kl_delta_ci95": None}
    kind = find_kl_kind([*left.values(), *right.values()])
    a = unit_divergences(first.items, left, kind)
    b = unit_divergences(second.items, right, kind)
    values = [b[unit] - a[unit] for unit in a if unit in b]
    interval = divergence_interval(values)
    return {
        "kl_delta": sum(values) / len(values) if values else None,
        "kl_delta_ci95": interval and [interval.low, interval.high],
    }
