"""The page of one candidate: gathers what it shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ...fidelity.divergences import divergences, kind_of
from ...results import StoredRun, read_fidelity, read_quantization
from ..calibration_section import shown_warnings
from ..health import THRESHOLDS
from ..speed_section import speed_notes
from . import plots, scores, tables
from .formatting import count_of, count_points, interval, nats, number, ratio, signed, size
from .formatting import verdict_words as words_of
from .gallery import build_gallery
from .render import Figure, render
from .table import Table

Report = Mapping[str, Any]


@dataclass(frozen=True)
class Fact:
    """One of the numbers that stand beside the verdict."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Breakdown:
    """One benchmark, category by category."""

    name: str
    synthetic: bool
    figure: Figure
    table: Table
    further: str  # other metrics of the benchmark


def report_page(
    report: Report,
    flips: Sequence[Mapping[str, Any]],
    base: StoredRun,
    candidate: StoredRun,
    *,
    overview: str | None = None,
) -> str:
    """The page of one candidate.

    Args:
        report: content of `report.json`.
        flips: all changed answers.
        base: the original's run, for its pictures.
        candidate: the other run, for divergences, pictures and layers.
        overview: relative address of the page that compares several candidates.

    Raises:
        ValueError: a file of a run is damaged.
    """
    return render(
        "report.html.j2",
        report=report,
        words=words_of(report),
        margin=count_points(report["margin"]),
        recipe=_recipe(report, candidate),
        facts=_facts(report),
        limits=_limits(report),
        headline=scores.headline(report["benchmarks"], report["pooled"]),
        gallery=build_gallery(report, flips, base, candidate),
        breakdowns=[
            _breakdown(place, name, entry, report["margin"], _divergent(report, name))
            for place, (name, entry) in enumerate(report["benchmarks"].items())
        ],
        fidelity=_fidelity(report),
        gold=_of_fidelity(report, tables.gold),
        noise=_of_fidelity(report, tables.noise),
        perplexity=_perplexity(report["perplexity"]),
        divergences=_divergences(candidate),
        layers=_layers(candidate),
        cost=tables.cost(report),
        memory_kind=report["memory"]["candidate"].get("kind"),
        speed_notes=speed_notes(report["speed"]),
        health=tables.health(report["benchmarks"]),
        violated=[
            f"{name}: {reason['text']}"
            for name, entry in report["benchmarks"].items()
            for reason in entry["health_reasons"]
        ],
        thresholds=", ".join(f"{k} {v:g}" for k, v in THRESHOLDS.items()),
        setup=tables.setup(report),
        fingerprint=json.dumps(report["fingerprint"], ensure_ascii=False, indent=2),
        overview=overview,
    )


def _recipe(report: Report, candidate: StoredRun) -> str | None:
    """Name of the recipe: the report's maker may know it, and so may the checkpoint's record."""
    found = report.get("recipe") or (read_quantization(candidate) or {}).get("recipe")
    return str(found["name"]) if found else None


def _facts(report: Report) -> list[Fact]:
    """What else decides about shipping: size, the worst change, flips, and fidelity."""
    sizes, entries = report["size"], report["benchmarks"]
    before, after = sizes["base_bytes"], sizes["candidate_bytes"]
    name, worst = min(entries.items(), key=lambda entry: entry[1]["delta"])
    lost = sum(entry["flips"]["right_to_wrong"] for entry in entries.values())
    won = sum(entry["flips"]["wrong_to_right"] for entry in entries.values())
    asked = sum(entry["n"] for entry in entries.values())
    times = ratio(after, before)
    smaller = f"{times} the base's {size(before)}" if times else ""
    facts = [
        Fact("Weights", size(after), smaller),
        Fact(
            "Largest loss" if worst["delta"] < 0 else "Smallest gain",
            f"{signed(worst['delta'])} points",
            f"{name}, 95 % interval {interval(worst['ci95'])}",
        ),
        Fact("Answers lost", f"{lost:,}", f"and {won:,} won, of {count_of(asked, 'question')}"),
    ]
    if found := report["fidelity"]:
        agreement = f"{number(100 * found['top1_agreement'])} %"
        detail = f"of {count_of(found['tokens'], 'token')}; mean KL {nats(found['kl_mean'])} nats"
        facts.append(Fact("Same top token", agreement, detail))
    return facts


def _limits(report: Report) -> list[str]:
    """What a reader must know before believing the verdict; the synthetic banner apart."""
    tasks = report["fingerprint"]["tasks"].items()
    limited = [f"{name} {task['limit']}" for name, task in tasks if task["limit"]]
    found = []
    if limited:
        found.append(f"Only a sample of the questions was asked, at most: {', '.join(limited)}.")
    if any(entry["blank_images"] for entry in report["benchmarks"].values()):
        found.append("Every picture was replaced by grey: this shows what can be guessed unseen.")
    warnings = shown_warnings(report.get("calibration"))
    found += [f"{text[0].upper()}{text[1:]}." for text in warnings]
    notes = report["benchmarks"].items()
    return found + [f"{name}: {note}." for name, entry in notes for note in entry["notes"]]


def _divergent(report: Report, name: str) -> Report:
    """Divergence of each category of a benchmark, where it was measured."""
    measured = (report["fidelity"] or {}).get("per_benchmark", {})
    found: Report = measured.get(name, {}).get("categories", {})
    return found


def _breakdown(place: int, name: str, entry: Report, margin: float, divergent: Report) -> Breakdown:
    rows = scores.interval_rows(entry)
    figure = Figure(
        plots.interval_plot(
            f"intervals{place}",
            f"Differences on {name} with their 95 % intervals, for all questions and each category",
            rows,
            margin,
        ),
        "Δ with its 95 % interval, the number of questions in brackets, the worst first. "
        f"Dashed: the {count_points(margin)} that may be lost. Red or green: the interval leaves "
        "zero out.",
    )
    base, candidate = entry["extra"]["base"], entry["extra"]["candidate"]
    further = [f"{key} {number(v)} → {number(candidate[key])}" for key, v in base.items()]
    table = scores.categories(name, {**entry, "divergent": divergent})
    return Breakdown(name, entry["synthetic"], figure, table, "; ".join(further))


def _fidelity(report: Report) -> Table | None:
    found = report["fidelity"]
    return tables.fidelity(found, report["benchmarks"]) if found else None


def _of_fidelity(report: Report, make: Callable[[Report, Report], Table | None]) -> Table | None:
    found = report["fidelity"]
    return make(found, report["benchmarks"]) if found else None


def _perplexity(found: Report | None) -> str | None:
    """One sentence; None where no text was read."""
    if found is None:
        return None
    bounds = found["ratio_ci95"]
    around = f" (95 % interval {bounds[0]:.4f} to {bounds[1]:.4f})" if bounds else ""
    if found["overflow"]:
        nll = found["nll"]
        return (
            f"Perplexity on {found['tokens']:,} tokens of text is above the largest float; mean "
            f"negative log-probability of a token: {nll['base']:.3f} nats for the base, "
            f"{nll['candidate']:.3f} for the candidate."
        )
    return (
        f"Perplexity on {found['tokens']:,} tokens of text: {found['base']:.3f} for the base, "
        f"{found['candidate']:.3f} for the candidate, a ratio of {found['ratio']:.4f}{around}."
    )


def _divergences(candidate: StoredRun) -> list[Figure]:
    """The divergences of all answer tokens: how they spread, and where in the answer they are."""
    records = [
        record
        for task in candidate.tasks.values()
        for record in (read_fidelity(task) or {}).values()
    ]
    kind = kind_of(records)
    answers = [divergences(record, kind) for record in records]
    values = [value for answer in answers for value in answer]
    if not values:
        return []
    below = sum(value < plots.FLOOR for value in values)
    floor = f" {count_of(below, 'token')} below 10⁻⁸ nats in the leftmost bar." if below else ""
    points = plots.by_position(answers)
    pooled = [point for point in points if point.last > point.first]
    joined = f" From token {pooled[0].first} on, neighbours share a point." if pooled else ""
    return [
        Figure(
            plots.divergence_histogram(
                "histogram", "Histogram of the KL divergence of answer tokens", values
            ),
            f"{count_of(len(values), 'answer token')} of all benchmarks.{floor} A tail on the "
            "right means few tokens, but wrong ones.",
        ),
        Figure(
            plots.position_plot(
                "position", "KL divergence against the position of the token in the answer", points
            ),
            f"Along the answer, at least {plots.TOKENS_PER_POINT} tokens to a point where there "
            f"are as many.{joined} A rising line means that long answers drift.",
        ),
    ]


@dataclass(frozen=True)
class Layers:
    """What is known about the candidate's layers."""

    known: bool  # whether there is a record at all
    count: int
    figures: list[Figure]
    table: Table | None


def _layers(candidate: StoredRun) -> Layers:
    record = read_quantization(candidate)
    layers = record["layers"] if record else []
    errors = plots.layer_errors(layers)
    figures = []
    stages = groupby(sorted(errors, key=lambda e: e.stage), key=lambda e: e.stage)
    for place, (stage, members) in enumerate(stages):
        svg = plots.layer_plot(
            f"layers{place}", f"Quantization error of each layer of {stage}", list(members)
        )
        caption = (
            "Squared error of each layer's output over the calibration samples, relative to the "
            "output's own square; logarithmic."
        )
        figures.append(Figure(svg, caption))
    table = tables.worst_layers(layers)
    return Layers(record is not None, len(layers), figures, table if table.rows else None)
