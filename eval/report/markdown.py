"""The report and the comparison as Markdown: the verdict first, then its evidence."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .health import THRESHOLDS
from .provenance import describe_evaluation
from .sections.sampling import describe_sampling
from .sections.speed import memory_note, speed_notes
from .tables.answers import (
    fault_table,
    health_table,
    length_table,
    reasoning_table,
    sampling_table,
)
from .tables.columns import DataTable, markdown_notes, markdown_table
from .tables.fidelity import divergence_table, gold_table, noise_table
from .tables.formatting import SYNTHETIC_NOTE, escape
from .tables.models import cost_table, kv_range_table
from .tables.same_bytes import same_bytes_table, same_bytes_warnings
from .tables.scores import (
    benchmark_table,
    candidate_table,
    category_table,
    flip_table,
    pair_table,
)
from .words.criterion_words import criterion_words, is_mlperf
from .words.divergence import OVER
from .words.drafts import as_draft_text
from .words.sentences import (
    caveats,
    describe_samples,
    perplexity_text,
    shown_warnings,
)
from .words.verdict import verdict_label, verdict_text

FLIPS_SHOWN = 40  # per benchmark; all of them are in flips.jsonl
TEXT_LIMIT = 2000  # characters of a sentence outside of tables

Report = Mapping[str, Any]


def render_report(report: Report, flips: Sequence[Mapping[str, Any]]) -> str:
    """Render `report.json` and the flips as Markdown."""
    return _join(
        [
            *_head(report),
            *_scores(report),
            *_fidelity(report),
            *_cost(report),
            *_health(report["benchmarks"]),
            *_categories(report["benchmarks"]),
            *_flips(report["benchmarks"], flips),
            "## Setup",
            f"```json\n{json.dumps(report['fingerprint'], ensure_ascii=False, indent=2)}\n```",
        ]
    )


def render_comparison(comparison: Report) -> str:
    """Render `comparison.json` as Markdown."""
    parts = [
        f"# Candidates against {escape(comparison['base'])}",
        escape(comparison["headline"], TEXT_LIMIT),
        *_synthetic(comparison),
        *_steps(comparison["next_steps"]),
        markdown_table(candidate_table(comparison)),
        *_bullets(comparison["verdict_reasons"]),
        *(
            f"**Note on {escape(name)}**: {escape(note, TEXT_LIMIT)}."
            for name, entry in comparison["candidates"].items()
            for note in entry["notes"]
        ),
    ]
    if comparison.get("same_bytes"):
        parts.append("## Fewer weights beside the same bytes")
        parts += _bullets(same_bytes_warnings(comparison))
        if (table := same_bytes_table(comparison)) is not None:
            parts += _explained(table)
    if comparison["pairs"]:
        parts.append("## Differences between candidates, second minus first")
        parts.append(markdown_table(pair_table(comparison)))
    return _join(parts)


def _join(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _explained(table: DataTable) -> list[str]:
    return [markdown_table(table), markdown_notes(table)]


def _head(report: Report) -> list[str]:
    words = verdict_text(report)
    models = f"{escape(report['candidate'])} against {escape(report['base'])}"
    synthetic = " (synthetic benchmarks)" if report["synthetic"] else ""
    label = verdict_label(report["verdict"], report["scope"])
    return [
        f"# {label}: {models}{synthetic}",
        f"Evaluated {escape(describe_evaluation(report['evaluated']), TEXT_LIMIT)}.",
        *_calibration(report),
        escape(f"{words.title} {words.reason}", TEXT_LIMIT),
        *_steps(words.steps),
        _method(report),
        *_bullets(report["verdict_reasons"]),
        *_synthetic(report),
        *(escape(text, TEXT_LIMIT) for text in caveats(report)),
        *(f"**Note**: {escape(note, TEXT_LIMIT)}." for note in report["notes"]),
    ]


def _method(report: Report) -> str:
    if is_mlperf(report):
        return criterion_words(report).method
    margin = f"{report['margin']:g}"
    return (
        f"The margin is {margin} points. A benchmark is PASS if the lower one-sided 95 % bound of "
        f"its Δ is above -{margin}, FAIL if the upper one is below."
    )


def _steps(steps: Sequence[str]) -> list[str]:
    return ["**Next steps**", *_bullets(steps)] if steps else []


def _bullets(texts: Sequence[str]) -> list[str]:
    return ["\n".join(f"- {escape(text, TEXT_LIMIT)}" for text in texts)] if texts else []


def _calibration(report: Report) -> list[str]:
    """Recipe and calibration samples, if the report has them."""
    if not (calibration := report.get("calibration")):
        return []
    recipe = f"Recipe {escape(report['recipe']['name'])}"
    if not calibration["samples"]:
        return [f"{recipe}, without calibration."]
    samples = escape(describe_samples(calibration), TEXT_LIMIT)
    warnings = (
        f" **Warning**: {escape(warning, TEXT_LIMIT)}." for warning in shown_warnings(calibration)
    )
    return [f"{recipe}, calibrated on {samples}.{''.join(warnings)}"]


def _synthetic(report: Report) -> list[str]:
    return [f"**Synthetic**: {SYNTHETIC_NOTE}."] if report["synthetic"] else []


def _scores(report: Report) -> list[str]:
    rules = "; ".join(
        f"{escape(name)}: {entry['n_rows']} rows, rules {entry['profile']}, "
        f"prompts {entry['prompt_style']}, pixels {entry['pixels']}, reasoning "
        f"{entry['reasoning_rule']}, answers of at most {entry['max_new_tokens']} tokens, no judge "
        "model"
        for name, entry in report["benchmarks"].items()
    )
    parts = ["## Scores", *_explained(benchmark_table(report)), f"{rules}."]
    if sampling := sampling_table(report["benchmarks"]):
        note = describe_sampling(report) or ""
        parts += ["### Sampled answers", escape(note, TEXT_LIMIT), *_explained(sampling)]
    return parts


def _fidelity(report: Report) -> list[str]:
    parts = ["## Fidelity"]
    if (divergences := divergence_table(report)) is None:
        parts.append("Not measured (no reference given).")
    else:
        kind = OVER[report["fidelity"]["kl_kind"]]
        parts.append(
            f"KL(base ‖ candidate) in nats {kind}, both models reading the base's answers."
        )
        parts += [*_explained(divergences), as_draft_text(report) or ""]
    if gold := gold_table(report):
        parts += ["### Gold option letters", *_explained(gold)]
    if noise := noise_table(report):
        parts += ["### Noise floor: the base against itself", *_explained(noise)]
    parts.append(perplexity_text(report["perplexity"]) or "")
    if ranges := kv_range_table(report):
        parts += ["### Keys and values in the KV cache", *_explained(ranges)]
    return parts


def _cost(report: Report) -> list[str]:
    return [
        "## Size, speed, memory",
        markdown_table(cost_table(report)),
        "Bits per weight include the tensors that are not quantized. "
        + memory_note(report["memory"]),
        " ".join(speed_notes(report["speed"])),
    ]


def _health(benchmarks: Mapping[str, Report]) -> list[str]:
    limits = ", ".join(f"{name} {value:g}" for name, value in THRESHOLDS.items())
    return [
        "## Health",
        *_explained(health_table(benchmarks)),
        "A verdict is not PASS if a model violates one of these limits (docs/report.md, Health): "
        f"{escape(limits, TEXT_LIMIT)}.",
        *(
            part
            for make in (reasoning_table, length_table, fault_table)
            if (table := make(benchmarks))
            for part in _explained(table)
        ),
    ]


def _categories(benchmarks: Mapping[str, Report]) -> list[str]:
    parts, notes = ["## Categories"], ""  # all tables have the same columns
    for name, entry in benchmarks.items():
        base, candidate = entry["extra"]["base"], entry["extra"]["candidate"]
        further = "; ".join(
            f"{escape(key)} {value:.1f} → {candidate[key]:.1f}" for key, value in base.items()
        )
        table = category_table(name, entry, {})
        parts += [
            f"### {escape(name)}",
            markdown_table(table) if table.rows else "The questions have no categories.",
            f"Further metrics: {further}." if further else "",
        ]
        notes = markdown_notes(table)
    return [*parts, notes]


def _flips(benchmarks: Mapping[str, Report], flips: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = ["## Flips"]
    for name, entry in benchmarks.items():
        counts = entry["flips"]
        # In the order of the alphabet "right_to_wrong" comes first.
        of_benchmark = sorted(
            (flip for flip in flips if flip["benchmark"] == name), key=lambda flip: flip["change"]
        )
        more = len(of_benchmark) - FLIPS_SHOWN
        parts += [
            f"### {escape(name)}",
            f"{counts['right_to_wrong']} right to wrong, {counts['wrong_to_right']} wrong to "
            f"right, {counts['wrong_to_wrong']} wrong to another wrong; "
            f"{entry['identical_answers']:.1f} % of answers are identical.",
            markdown_table(flip_table(of_benchmark[:FLIPS_SHOWN])) if of_benchmark else "",
            f"{more} more in flips.jsonl." if more > 0 else "",
        ]
    return parts
