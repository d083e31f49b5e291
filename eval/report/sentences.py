"""Sentences that the HTML and the Markdown report share: verdict, caveats, perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .tables.formatting import join_names, points

WARNINGS_SHOWN = 5
"""Calibration warnings that a page shows; `report.json` holds all of them."""
LOOK = (
    "Look at the answers before asking more questions: a dtype that overflows, a damaged "
    "checkpoint, or a prompt layout or token limit that does not fit."
)

Report = Mapping[str, Any]


@dataclass(frozen=True)
class VerdictText:
    """A verdict in words: its meaning, its reason, and the next step."""

    title: str
    reason: str
    advice: str


def verdict_text(report: Report) -> VerdictText:
    """Explain a report's verdict as a decision about shipping the candidate."""
    entries: Mapping[str, Report] = report["benchmarks"]
    passed, failed, undecided = (
        [name for name, entry in entries.items() if entry["verdict"] == word]
        for word in ("PASS", "FAIL", "INCONCLUSIVE")
    )
    margin = points(report["margin"])
    if report["verdict"] == "PASS":
        where = "every benchmark" if len(entries) > 1 else join_names(passed)
        reason = f"On {where} it is shown to lose less than the {margin} allowed."
        return VerdictText("The candidate may ship.", reason, "")
    if report["verdict"] == "FAIL":
        return VerdictText(
            "The candidate should not ship.",
            f"It is shown to lose more than the {margin} allowed on {join_names(failed)}.",
            "Quantize with more bits, smaller groups or better calibration samples.",
        )
    unhealthy = {name: text for name in undecided if (text := _first_violation(entries[name]))}
    too_few = [name for name in undecided if name not in unhealthy]
    reasons = [f"On {name}, {text}." for name, text in unhealthy.items()]
    advice = [LOOK] if unhealthy else []
    if too_few or not unhealthy:
        reasons.append(
            "There are too few questions to tell whether the candidate loses more than the "
            f"{margin} allowed on {join_names(too_few)}."
        )
        tasks = report["fingerprint"]["tasks"].values()
        is_limited = any(task["limit"] for task in tasks)
        limited = " (this run was limited to a sample of them)" if is_limited else ""
        advice.append(f"Ask more questions{limited}, or allow a wider margin.")
    if passed:
        reasons.append(f"On {join_names(passed)} it is shown to stay within {margin}.")
    title = "Not proven either way yet." if too_few else "The answers cannot support a verdict."
    return VerdictText(title, " ".join(reasons), " ".join(advice))


def _first_violation(entry: Report) -> str | None:
    """The first violated health rule of a benchmark; None if it only lacks questions."""
    texts = [r["text"] for r in entry["health_reasons"] if r["rule"] != "few_questions"]
    return texts[0] if texts else None


def caveats(report: Report) -> list[str]:
    """Restrictions of the verdict, other than synthetic benchmarks and calibration samples."""
    tasks = report["fingerprint"]["tasks"].items()
    limited = [f"{name} {task['limit']}" for name, task in tasks if task["limit"]]
    texts = []
    if limited:
        texts.append(f"Only a sample of the questions was asked, at most: {', '.join(limited)}.")
    if any(entry["blank_images"] for entry in report["benchmarks"].values()):
        texts.append("Every image was replaced by grey: the scores show guessing without sight.")
    benchmarks = report["benchmarks"].items()
    return texts + [f"{name}: {note}." for name, entry in benchmarks for note in entry["notes"]]


def describe_samples(calibration: Mapping[str, Any]) -> str:
    """Number and source of the calibration samples.

    Args:
        calibration: `calibration` of `report.json`.
    """
    if not calibration["samples"]:
        return "none"
    is_synthetic = calibration["source"] == "synthetic"
    source = "built-in drawings" if is_synthetic else calibration["source"]
    return (
        f"{calibration['samples']} samples of {source}, {calibration['with_images']} of them with "
        "images"
    )


def shown_warnings(calibration: Mapping[str, Any] | None) -> list[str]:
    """The first warnings about the calibration samples, and the number of the others.

    Args:
        calibration: `calibration` of `report.json`; None if the report has none.
    """
    warnings = list((calibration or {}).get("warnings", ()))
    if len(warnings) <= WARNINGS_SHOWN:
        return warnings
    more = len(warnings) - WARNINGS_SHOWN
    return [*warnings[:WARNINGS_SHOWN], f"{more} more warnings are in report.json"]


def perplexity_text(perplexity: Report | None) -> str | None:
    """Perplexity of both models in one sentence; None if it was not measured.

    Args:
        perplexity: `perplexity` of `report.json`.
    """
    if perplexity is None:
        return None
    text = f"Perplexity on {perplexity['tokens']:,} tokens of text"
    if perplexity["overflow"]:
        nll = perplexity["nll"]
        return (
            f"{text} is above the largest float; mean negative log-probability of a token: "
            f"{nll['base']:.3f} nats for the base, {nll['candidate']:.3f} for the candidate."
        )
    ends = perplexity["ratio_ci95"]
    around = f" (95 % interval {ends[0]:.4f} to {ends[1]:.4f})" if ends else ""
    return (
        f"{text}: {perplexity['base']:.3f} for the base, {perplexity['candidate']:.3f} for the "
        f"candidate, a ratio of {perplexity['ratio']:.4f}{around}."
    )
