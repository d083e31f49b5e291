"""Sentences that the HTML and the Markdown report share: caveats, samples, perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ....quant.recipe.grids import SIMULATED
from ..provenance import generation_caveat
from .criterion_words import criterion_caveat
from .divergence import vocabulary_caveats
from .kv_cache import kv_cache_caveats
from .visual_tokens import visual_token_caveats

WARNINGS_SHOWN = 5
"""Calibration warnings that a page shows; `report.json` holds all of them."""

Report = Mapping[str, Any]


def caveats(report: Report) -> list[str]:
    """Restrictions of the verdict, other than synthetic benchmarks and calibration samples."""
    tasks = report["fingerprint"]["tasks"].items()
    limited = [f"{name} {task['limit']}" for name, task in tasks if task["limit"]]
    texts = []
    if limited:
        texts.append(f"Only a sample of the questions was asked, at most: {', '.join(limited)}.")
    if any(entry["blank_images"] for entry in report["benchmarks"].values()):
        texts.append("Every image was replaced by grey: the scores show guessing without sight.")
    if criterion := criterion_caveat(report):
        texts.append(criterion)
    if simulated := simulation_caveat(report["fingerprint"].get("candidate")):
        texts.append(simulated)
    texts += kv_cache_caveats(report)
    texts += visual_token_caveats(report)
    texts += vocabulary_caveats(report)
    if generation := generation_caveat(report["generation"]):
        texts.append(generation)
    benchmarks = report["benchmarks"].items()
    texts += [f"{warning}." for warning in report.get("warnings", ())]
    return texts + [f"{name}: {note}." for name, entry in benchmarks for note in entry["notes"]]


def simulation_caveat(candidate: Mapping[str, Any] | None) -> str | None:
    """A sentence on activations whose rounding was simulated; None without any.

    Args:
        candidate: the part of the fingerprint about the candidate.
    """
    kernels = (candidate or {}).get("kernels") or {}
    names = [n.removeprefix(SIMULATED).strip() for n in kernels if n.startswith(SIMULATED)]
    if not names:
        return None
    return (
        f"Activations were simulated ({', '.join(names)}): rounded exactly as by engines with "
        "hardware for them, but multiplied in float32. Speed and memory are not those of engines."
    )


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
