"""Builds the page of one candidate."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ...fidelity.divergences import divergences, find_kl_kind
from ...results import StoredRun, read_fidelity, read_quantization
from ..health import THRESHOLDS
from ..provenance import describe_evaluation
from ..sections.sampling import describe_sampling
from ..sections.speed import memory_note, speed_notes
from ..tables import answers, fidelity, models, scores
from ..tables.columns import DataTable
from ..tables.formatting import (
    count_of,
    interval,
    join_names,
    nats,
    number,
    points,
    ratio,
    signed,
    size,
)
from ..words.criterion_words import criterion_words
from ..words.drafts import as_draft_text
from ..words.sentences import caveats, perplexity_text, shown_warnings
from ..words.verdict import verdict_label, verdict_text
from . import plots
from .byte_bars import byte_bars
from .expert_map import expert_map, few_tokens
from .gallery import build_gallery
from .render import Figure, render

FEW_CATEGORIES = 12
"""Largest number of fine categories that are drawn unfolded."""
Report = Mapping[str, Any]


@dataclass(frozen=True)
class Fact:
    """A number shown next to the verdict."""

    label: str
    value: str
    detail: str


@dataclass(frozen=True)
class Breakdown:
    """One benchmark, category by category."""

    name: str
    synthetic: bool
    finding: str  # the categories that differ, in words
    figure: Figure | None  # coarse categories, or fine ones if these are few
    fine_figure: Figure | None  # folded: fine categories, if there are many
    table: DataTable
    further: str  # other metrics of the benchmark
    is_notable: bool  # whether a category differs: unfolds the figure and the table


def report_page(
    report: Report,
    flips: Sequence[Mapping[str, Any]],
    base: StoredRun,
    candidate: StoredRun,
    *,
    overview: str | None = None,
) -> str:
    """Render the page of one candidate.

    Args:
        report: content of `report.json`.
        flips: all flips, as in `flips.jsonl`.
        base: run of the original, for its images.
        candidate: run of the candidate, for divergences, images and layers.
        overview: relative address of the page that compares several candidates.

    Returns:
        A complete HTML document.

    Raises:
        ValueError: a file of a run is damaged.
    """
    return render(
        "report.html.j2",
        report=report,
        words=verdict_text(report),
        label=verdict_label(report["verdict"], report["scope"]),
        method=criterion_words(report).method,
        recipe=_recipe(report, candidate),
        facts=_facts(report),
        caveats=[*caveats(report), *_calibration_warnings(report)],
        scores=scores.benchmark_table(report),
        sampling=answers.sampling_table(report["benchmarks"]),
        sampling_note=describe_sampling(report),
        gallery=build_gallery(report, flips, base, candidate),
        evaluated=describe_evaluation(report["evaluated"]),
        breakdowns=[
            _breakdown(index, name, report) for index, name in enumerate(report["benchmarks"])
        ],
        fidelity=fidelity.divergence_table(report),
        gold=fidelity.gold_table(report),
        noise=fidelity.noise_table(report),
        perplexity=perplexity_text(report["perplexity"]),
        as_draft=as_draft_text(report),
        divergences=_divergences(candidate),
        kv_ranges=models.kv_range_table(report),
        layers=_layers(candidate),
        cost=models.cost_table(report),
        parts=_part_figure(report),
        memory_note=memory_note(report["memory"]),
        speed_notes=speed_notes(report["speed"]),
        health=answers.health_table(report["benchmarks"]),
        reasoning=answers.reasoning_table(report["benchmarks"]),
        lengths=answers.length_table(report["benchmarks"]),
        faults=answers.fault_table(report["benchmarks"]),
        violated=[
            f"{name}: {reason['text']}"
            for name, entry in report["benchmarks"].items()
            for reason in entry["health_reasons"]
        ],
        thresholds=", ".join(f"{k} {v:g}" for k, v in THRESHOLDS.items()),
        setup=models.setup_table(report),
        fingerprint=json.dumps(report["fingerprint"], ensure_ascii=False, indent=2),
        overview=overview,
    )


def _part_figure(report: Report) -> Figure | None:
    """Bytes by part of both models; None if one model's are unknown."""
    before, after = report["size"].get("base_parts"), report["size"].get("candidate_parts")
    if not before or not after:
        return None
    svg = byte_bars(
        "bytes", "Tensor bytes of the base and the candidate by part of the model",
        {"base": before, "candidate": after},
    )  # fmt: skip
    return Figure(svg, "Tensors by part of the model. A tied head has no bytes of its own.")


def _recipe(report: Report, candidate: StoredRun) -> str | None:
    """Name of the recipe, from the report or else from the checkpoint's record."""
    recipe = report.get("recipe") or (read_quantization(candidate) or {}).get("recipe")
    return str(recipe["name"]) if recipe else None


def _calibration_warnings(report: Report) -> list[str]:
    warnings = shown_warnings(report.get("calibration"))
    return [f"{text[0].upper()}{text[1:]}." for text in warnings]


def _facts(report: Report) -> list[Fact]:
    """The most important numbers after the verdict: size, worst change, flips, fidelity."""
    sizes, entries = report["size"], report["benchmarks"]
    before, after = sizes["base_bytes"], sizes["candidate_bytes"]
    name, worst = min(entries.items(), key=lambda entry: entry[1]["delta"])
    lost = sum(entry["flips"]["right_to_wrong"] for entry in entries.values())
    won = sum(entry["flips"]["wrong_to_right"] for entry in entries.values())
    questions = sum(entry["n"] for entry in entries.values())
    times = ratio(after, before)
    facts = [
        Fact("Weights", size(after), f"{times} the base's {size(before)}" if times else ""),
        Fact("Answers lost", f"{lost:,}", f"and {won:,} won, of {count_of(questions, 'question')}"),
    ]
    if worst["delta"] < 0:
        change = f"{signed(worst['delta'])} points"
        detail = f"{name}, 95 % interval {interval(worst['ci95'])}"
        facts.insert(1, Fact("Largest loss", change, detail))
    if total := report["fidelity"]:
        agreement = f"{number(100 * total['top1_agreement'])} %"
        detail = f"of {count_of(total['tokens'], 'token')}; mean KL {nats(total['kl_mean'])} nats"
        facts.append(Fact("Same top token", agreement, detail))
    return facts


def _breakdown(index: int, name: str, report: Report) -> Breakdown:
    entry = report["benchmarks"][name]
    allowed = report["margin"]
    if allowed is None:  # by MLPerf's rule a share of the base's score
        allowed = round(entry["base"] - entry["threshold"], 2)
    coarse, fine = scores.coarse_categories(entry), scores.fine_categories(entry)
    coarse_rows = [(f"all {group}", part) for group, part in coarse.items()]

    def figure(kind: str, parts: Iterable[tuple[str, Report]]) -> Figure | None:
        rows = _interval_rows(entry, parts)
        if len(rows) < 3:  # one part is all questions again
            return None
        svg = plots.interval_plot(
            f"{kind}{index}",
            f"Differences on {name} with their 95 % intervals, for all questions and each {kind}",
            rows,
            allowed,
        )
        caption = (
            "Δ (candidate minus base) with its 95 % interval and the number of questions in "
            f"brackets, the worst first. Dashed: the allowed loss of {points(allowed)}. "
            "Red or green: the interval excludes zero."
        )
        return Figure(svg, caption)

    coarse_figure, fine_figure = figure("group", coarse_rows), figure("category", fine.items())
    if coarse_figure is None and len(fine) <= FEW_CATEGORIES:
        coarse_figure, fine_figure = fine_figure, None
    base, candidate = entry["extra"]["base"], entry["extra"]["candidate"]
    further = "; ".join(f"{k} {number(v)} → {number(candidate[k])}" for k, v in base.items())
    measured = (report["fidelity"] or {}).get("per_benchmark", {}).get(name, {})
    return Breakdown(
        name,
        entry["synthetic"],
        _finding(entry, coarse, fine),
        coarse_figure,
        fine_figure,
        scores.category_table(name, entry, measured.get("categories", {})),
        further,
        bool(scores.differing_categories(entry)),
    )


def _finding(entry: Report, coarse: Report, fine: Report) -> str:
    """The categories whose change is significant, or the reason why none is named."""
    if not (count := len(coarse) + len(fine)):
        return "The questions have no categories."
    differing = scores.differing_categories(entry)
    if not differing:
        return (
            f"None of {count_of(count, 'category')} changes by more than chance explains (p below "
            f"{scores.SIGNIFICANT:g} after adjustment for their number)."
        )
    changes = [f"{part} ({signed(row['delta'])} points)" for part, row in differing.items()]
    return f"Changed by more than chance explains: {join_names(changes)}."


def _interval_rows(entry: Report, parts: Iterable[tuple[str, Report]]) -> list[plots.IntervalRow]:
    """All questions of a benchmark, then its parts, the worst first."""

    def row(label: str, part: Report, is_total: bool = False) -> plots.IntervalRow:
        low, high = part["ci95"]
        return plots.IntervalRow(label, part["n"], part["delta"], low, high, is_total)

    ordered = sorted(parts, key=lambda part: (part[1]["delta"], part[0]))
    return [row("all questions", entry, is_total=True), *(row(*part) for part in ordered)]


def _divergences(candidate: StoredRun) -> list[Figure]:
    """The divergences of all answer tokens: their distribution, and their course in the answer."""
    records = [
        record
        for task in candidate.tasks.values()
        for record in (read_fidelity(task) or {}).values()
    ]
    kind = find_kl_kind(records)
    answers = [divergences(record, kind) for record in records]
    values = [value for answer in answers for value in answer]
    if len(values) < 2:  # one number, which the table shows
        return []
    below = sum(value < plots.FLOOR for value in values)
    floor = f" The leftmost bar holds {count_of(below, 'token')} below 10⁻⁸ nats." if below else ""
    positions = plots.by_position(answers)
    pooled = [position for position in positions if position.last > position.first]
    joined = f" From token {pooled[0].first} on, neighbours share a point." if pooled else ""
    figures = [
        Figure(
            plots.divergence_histogram(
                "histogram", "Histogram of the KL divergence of answer tokens", values
            ),
            f"{count_of(len(values), 'answer token')} of all benchmarks.{floor} A tail on the "
            "right: a few tokens differ strongly.",
        ),
    ]
    if len(positions) > 1:
        svg = plots.position_plot(
            "position", "KL divergence against the position of the token in the answer", positions
        )
        caption = (
            f"Each point holds at least {plots.TOKENS_PER_POINT} tokens if the answers are long "
            f"enough.{joined} A rising line means that long answers drift."
        )
        figures.append(Figure(svg, caption))
    return figures


@dataclass(frozen=True)
class Layers:
    """Quantization errors of the candidate's layers."""

    has_record: bool
    count: int
    figures: list[Figure]
    table: DataTable | None
    experts: Figure | None
    """Calibration tokens of each expert."""
    few: list[str]
    """Experts that too few tokens reach, by layer."""


def _layers(candidate: StoredRun) -> Layers:
    record = read_quantization(candidate)
    layers = record["layers"] if record else []
    errors = sorted(plots.layer_errors(layers), key=lambda error: error.stage)
    figures = []
    for index, (stage, group) in enumerate(groupby(errors, key=lambda error: error.stage)):
        members = list(group)
        if len(members) < 2:  # the table shows it
            continue
        svg = plots.layer_plot(
            f"layers{index}", f"Quantization error of each layer of {stage}", members
        )
        caption = (
            "Squared error of each layer's output over the calibration samples, relative to the "
            "squared output; logarithmic."
            + (" Experts: the mean of a layer." if record and record.get("experts") else "")
        )
        figures.append(Figure(svg, caption))
    experts, few = _experts(record or {})
    table = models.layer_table(layers)
    return Layers(record is not None, len(layers), figures, table, experts, few)


def _experts(record: Report) -> tuple[Figure | None, list[str]]:
    """The heat map of a record with experts, and those that too few tokens reach."""
    if not (experts := record.get("experts")):
        return None, []
    tokens, floor = experts["tokens"], experts["floor"]
    few = sum(count < floor for of_layer in tokens.values() for count in of_layer)
    total = sum(map(len, tokens.values()))
    caption = (
        f"Calibration tokens of each expert. Fewer than {floor} reach {few:,} of "
        f"{count_of(total, 'expert')}: their weights are rounded, without a solver."
    )
    svg = expert_map("experts", "Calibration tokens of each expert, by layer", tokens, floor)
    return Figure(svg, caption), few_tokens(tokens, floor)
