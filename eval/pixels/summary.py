"""The content of `pixels.json`: scores, divergences, visual tokens and times by budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..stats.verdict import Verdict
from .budgets import choose_budget
from .visual_tokens import VisualTokens, pool_visual_tokens

SCHEMA = 1
COPIED = (
    "synthetic",
    "limited",
    "metric",
    "n",
    "base",
    "candidate",
    "delta",
    "ci95",
    "ci_kind",
    "lower95",
    "upper95",
    "mcnemar_p",
    "flips",
    "verdict",
    "health_reasons",
    "questions_still_needed",
)
"""Keys of a benchmark's entry in `report.json`."""
NUMBERS = ("kl_mean", "kl_unit_mean", "kl_unit_mean_ci95", "top1_agreement")

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Measured:
    """All measurements of one call."""

    tokens: Mapping[int, Mapping[str, VisualTokens]]
    """By budget and benchmark; 0: with the checkpoint's own setting."""
    reports: Mapping[int, Report]
    """Content of `report.json` by budget, the largest first."""
    timing: Mapping[str, Any]
    without_effect: Sequence[int]


def summarize(
    model: str, measured: Measured, areas: Mapping[int, int], pixels_per_token: int
) -> dict[str, Any]:
    """Summarize the evaluations at all budgets.

    Args:
        model: its name.
        measured: reports, visual tokens and times.
        areas: largest area of an image in pixels by budget; 0: the checkpoint's own.
        pixels_per_token: area of the square of pixels that becomes one token.

    Returns:
        `verdict` is PASS if a budget is chosen for all benchmarks, and else that of the largest
        budget; `smallest` has for each benchmark, and under `all` for all together, the budget of
        `choose_budget`. A benchmark none of whose images a budget affects is not part of the
        choice. Times are seconds per question, scores percent, differences points, divergences
        nats per answer token.
    """
    reports, own = measured.reports, measured.tokens[0]
    first = next(iter(reports.values()))
    rows = [
        {
            "budget": budget,
            "max_pixels": areas[budget],
            "visual_tokens": pool_visual_tokens(list(measured.tokens[budget].values())),
            "verdict": report["verdict"],
            "verdict_reasons": report["verdict_reasons"],
            **_divergence(report["fidelity"]),
            "seconds": measured.timing["latencies"][str(budget)],
            "benchmarks": {
                name: _benchmark(name, report, measured.tokens[budget][name])
                for name in report["benchmarks"]
            },
        }
        for budget, report in reports.items()
    ]
    overall = choose_budget({row["budget"]: row["verdict"] for row in rows})
    return {
        "schema": SCHEMA,
        "model": model,
        "margin": first["margin"],
        "synthetic": first["synthetic"],
        "scope": first["scope"],
        "verdict": rows[0]["verdict"] if overall is None else Verdict.PASS.value,
        "pixels_per_token": pixels_per_token,
        "base": {
            "max_pixels": areas[0],
            "budget": areas[0] // pixels_per_token,
            "visual_tokens": pool_visual_tokens(list(own.values())),
            "benchmarks": {
                name: {**_tokens(own[name]), "score": entry["base"]}
                for name, entry in first["benchmarks"].items()
            },
        },
        "budgets": rows,
        "without_effect": list(measured.without_effect),
        "smallest": {
            "all": overall,
            "benchmarks": {name: _smallest(name, rows) for name in first["benchmarks"]},
        },
        "timing": {key: value for key, value in measured.timing.items() if key != "latencies"},
    }


def _smallest(name: str, rows: Sequence[Mapping[str, Any]]) -> int | None:
    entries = {row["budget"]: row["benchmarks"][name] for row in rows}
    return choose_budget({b: entry["verdict"] for b, entry in entries.items() if entry["affected"]})


def _benchmark(name: str, report: Report, tokens: VisualTokens) -> dict[str, Any]:
    entry = report["benchmarks"][name]
    fidelity = (report["fidelity"] or {}).get("per_benchmark", {}).get(name)
    return {**_tokens(tokens), **{key: entry[key] for key in COPIED}, **_divergence(fidelity)}


def _tokens(tokens: VisualTokens) -> dict[str, Any]:
    values = asdict(tokens)
    return {"visual_tokens": values.pop("mean"), **values}


def _divergence(fidelity: Report | None) -> dict[str, Any]:
    return {key: None if fidelity is None else fidelity[key] for key in NUMBERS}
