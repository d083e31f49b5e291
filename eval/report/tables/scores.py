"""Score tables: benchmarks, categories, candidates and flips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from ...stats.multiple_testing import FEW
from ...stats.verdict import Verdict
from ..words.verdict import Scope, verdict_label
from . import formatting as fmt
from .columns import (
    BENCHMARK,
    HTML,
    MARKDOWN,
    PAGES,
    PLAIN,
    Cell,
    Column,
    DataTable,
    Row,
    at,
    at_or_unknown,
    named_rows,
)

Entry = Mapping[str, Any]
SIGNIFICANT = 0.05
"""Adjusted p-values below this one unfold the details of a table."""
NO_CATEGORY = "none"
"""Category of the questions of a file without categories."""


def verdict_cell(row: Row) -> Cell:
    """A verdict with its colour; that of a candidate says what it is based on."""
    label = verdict_label(row["verdict"], row.get("scope", Scope.FULL))
    return Cell(label, f"verdict {row['verdict'].lower()}")


def delta_cell(row: Row) -> Cell:
    """A difference; its style says whether it is shown to be a gain or a loss."""
    low, high = row["ci95"]
    return Cell(row["delta"], "gain" if low > 0 else "loss" if high < 0 else "")


def _lost_and_won(row: Row) -> str | None:
    counts = row.get("flips", row)
    if "right_to_wrong" not in counts:
        return None
    return f"{counts['right_to_wrong']} / {counts['wrong_to_right']}"


def _still_needed(row: Row) -> str | None:
    """Questions to add, for a verdict that only lacks questions."""
    rules = {reason["rule"] for reason in row.get("health_reasons", ())} - {"few_questions"}
    if row["verdict"] != Verdict.INCONCLUSIVE or rules or "questions_still_needed" not in row:
        return None
    count = row["questions_still_needed"]
    return "–" if count is None else f"{count:,}"


_VERDICT = Column(
    "verdict",
    verdict_cell,
    note="Whether the loss is shown to stay below the margin (PASS), to exceed it (FAIL), or "
    "neither; by MLPerf's rule, whether the candidate reaches 99 % of the base.",
    style="mid",
)
SCORES = (
    BENCHMARK,
    replace(_VERDICT, media=HTML),
    Column("metric", lambda r: r.get("metric", "pooled"), style="", media=MARKDOWN),
    Column("n", at("n"), fmt.COUNT,
           "Questions, each counted once; all rotations of a multiple-choice question are one "
           "question."),
    Column("base", at("base"), fmt.fixed(2, console=1),
           "Share of questions that the original answers right, in percent; for ANLS the mean "
           "similarity."),
    Column("candidate", at("candidate"), fmt.fixed(2, console=1), "The same for the candidate."),
    Column("99 % of base", at("threshold"), fmt.fixed(2),
           "Smallest score that passes by MLPerf's rule, in percent.", media=PAGES),
    Column("Δ", delta_cell, fmt.difference(2, console=1), "Candidate minus base, in points."),
    Column("95 % interval", at("ci95"), fmt.span(2, console=1),
           "Two-sided confidence interval of Δ (Tango's score interval for paired proportions), in"
           " points."),
    Column("bounds", lambda r: (r["lower95"], r["upper95"]), fmt.span(2),
           "One-sided 95 % bounds of Δ: PASS if the lower one is above minus the margin, FAIL if "
           "the upper one is below it.", media=PAGES, is_detail=True),
    Column("McNemar p", at("mcnemar_p"), fmt.P_VALUE,
           "Probability that equally good models flip at least as unevenly (exact test).",
           is_detail=True),
    Column("Holm p", at("mcnemar_p_holm"), fmt.P_VALUE,
           "McNemar's p, adjusted for the number of benchmarks.", media=PAGES, is_detail=True),
    Column("detectable", at("detectable"), fmt.fixed(2),
           "Smallest true difference, in points, that a comparison of this size finds four times "
           "in five.", media=PAGES, is_detail=True),
    Column("lost / won", _lost_and_won,
           note="Questions that flipped from right to wrong, and from wrong to right."),
    Column("guessing", at("chance"), fmt.fixed(1),
           "Chance level: the expected score, in percent, of a model that guesses: one of the "
           "options, independently for each rotation; 0 for open questions.", media=PAGES),
    Column("still needed", _still_needed,
           note="Further questions until PASS, if answers keep changing at the rate seen so far. "
           "A dash: more questions are not expected to give PASS.", media=PAGES),
    replace(_VERDICT, media=PLAIN),
)  # fmt: skip


def benchmark_table(report: Entry) -> DataTable:
    """One row per benchmark, and one for each benchmark pooled over languages."""
    entries = [*report["benchmarks"].items(), *report.get("pooled", {}).items()]
    rows = named_rows(entries)
    p_values = [row.get("mcnemar_p_holm", 1.0) for row in rows]
    is_notable = min(p_values, default=1.0) < SIGNIFICANT
    return DataTable("Scores of both models on every benchmark", SCORES, rows, is_notable)


CATEGORIES = (
    Column("category", at("name"), style="name"),
    Column("n", at("n"), fmt.COUNT, "Questions of the category."),
    Column("base", at("base"), fmt.fixed(1), "Percent right."),
    Column("candidate", at("candidate"), fmt.fixed(1), "Percent right."),
    Column("Δ", delta_cell, fmt.difference(1), "In points."),
    Column("95 % interval", at("ci95"), fmt.span(1),
           "In points; not adjusted for the number of categories: one in twenty is expected to "
           "look like a loss or a gain."),
    Column("lost / won", _lost_and_won, note="Flips from right to wrong, and from wrong to right."),
    Column("adjusted p", at("p_adjusted"), fmt.P_VALUE,
           "McNemar's p after Benjamini and Hochberg over the categories, coarse and fine ones "
           "separately."),
    Column("few", lambda r: "few" if r.get("few") else None,
           note=f"Fewer than {FEW} questions, too few for a conclusion.", style="", media=MARKDOWN),
    Column("mean KL", at("kl_mean"), fmt.divergence(), "Nats per answer token.", media=HTML),
)  # fmt: skip


def category_table(benchmark: str, entry: Entry, divergences: Mapping[str, Entry]) -> DataTable:
    """Coarse categories of a benchmark, then fine ones.

    Args:
        benchmark: its name.
        entry: its entry in `report.json`.
        divergences: mean divergences by category, as far as measured.
    """
    coarse = named_rows((f"all {name}", part) for name, part in coarse_categories(entry).items())
    fine = named_rows(
        (name, {**part, **divergences.get(name, {})})
        for name, part in fine_categories(entry).items()
    )
    return DataTable(f"Categories of {benchmark}", CATEGORIES, [*coarse, *fine])


def coarse_categories(entry: Entry) -> dict[str, Any]:
    """Coarse categories of a benchmark that are not also fine ones."""
    return {
        name: part
        for name, part in entry["groups"].items()
        if name not in entry["categories"] and name != NO_CATEGORY
    }


def fine_categories(entry: Entry) -> dict[str, Any]:
    """Categories of a benchmark; empty if all questions have none."""
    categories: dict[str, Any] = dict(entry["categories"])
    return {} if set(categories) == {NO_CATEGORY} else categories


def differing_categories(entry: Entry) -> dict[str, Any]:
    """Categories, coarse or fine, whose difference is significant after adjustment."""
    parts = {**coarse_categories(entry), **fine_categories(entry)}
    return {name: part for name, part in parts.items() if part["p_adjusted"] < SIGNIFICANT}


FLIPS = (
    Column("row", at("row"), style="name"),
    Column("change", lambda r: r["change"].replace("_", " "), style=""),
    Column("category", at("category"), style=""),
    Column("question", at("question"), style=""),
    Column("gold", at("gold"), fmt.text_format(40), style=""),
    Column("base", at("base"), fmt.text_format(40), style=""),
    Column("candidate", at("candidate"), fmt.text_format(40), style=""),
)


def flip_table(flips: Iterable[Entry]) -> DataTable:
    """One row per flip, an entry of `flips.jsonl`."""
    return DataTable("Flips", FLIPS, list(flips))


def candidate_table(comparison: Entry) -> DataTable:
    """One row per candidate, with its change on every benchmark and a link to its own page."""
    benchmarks = next(iter(comparison["candidates"].values()))["benchmarks"]
    columns = [
        Column("candidate", _link, style="name"),
        replace(_VERDICT, note="Over all benchmarks."),
        *(_benchmark_column(name, entry) for name, entry in benchmarks.items()),
        Column("mean score", at("mean_score", "candidate"), fmt.fixed(2),
               "Mean of the benchmarks' scores with equal weights, in percent.", media=HTML),
        Column("mean KL", at("fidelity", "kl_mean"), fmt.divergence(),
               "Divergence from the base, nats per answer token."),
        Column("weights", at_or_unknown("size", "candidate_bytes"), fmt.BYTES,
               "Size of the checkpoint.", media=HTML),
        Column("of the base", _relative_size,
               note="Size as a multiple of the base's.", media=HTML),
        Column("bits per weight", at_or_unknown("size", "bits_per_weight"), fmt.fixed(2),
               "Mean over the whole model."),
    ]  # fmt: skip
    return DataTable("All candidates", columns, named_rows(comparison["candidates"].items()))


def _link(row: Row) -> Cell:
    return Cell(row["name"], href=f"{quote(row['name'])}/report.html")


def _relative_size(row: Row) -> str | None:
    return fmt.ratio(row["size"]["candidate_bytes"], row["size"]["base_bytes"])


# The word of a verdict is a colour in HTML.
_SCORE_AND_CHANGE = fmt.Format(
    lambda entry: f"{fmt.number(entry['candidate'])} ({fmt.signed(entry['delta'])})",
    lambda entry: f"{entry['candidate']:.1f} ({entry['delta']:+.1f}) {entry['verdict']}",
    lambda entry: f"{entry['candidate']:.1f} ({entry['delta']:+.1f}) {entry['verdict']}",
)


def _benchmark_column(name: str, entry: Entry) -> Column:
    def cell(row: Row) -> Cell:
        value = row["benchmarks"][name]
        return Cell(value, f"judged {value['verdict'].lower()}")

    head = f"{name} ({fmt.SYNTHETIC})" if entry.get("synthetic") else name
    note = "Score in percent, and its difference from the base in points."
    return Column(head, cell, _SCORE_AND_CHANGE, note, "number wrap")


def candidate_score_table(comparison: Entry) -> DataTable:
    """One row per candidate and benchmark."""
    columns = [Column("model", at("model"), style="name"), *SCORES]
    rows = [
        {"model": candidate, "name": name, **entry}
        for candidate, result in comparison["candidates"].items()
        for name, entry in result["benchmarks"].items()
    ]
    return DataTable("Scores of all candidates", columns, rows)


PAIRS = (
    Column("first", at("first"), style="name"),
    Column("second", at("second"), style="name"),
    BENCHMARK,
    Column("Δ", delta_cell, fmt.difference(2), "Second minus first, in points."),
    Column("95 % interval", at("ci95"), fmt.span(2),
           "Confidence interval of the paired difference."),
    Column("McNemar p", at("mcnemar_p"), fmt.P_VALUE, "Exact test of the flips."),
    Column("Δ KL", at("kl_delta"), fmt.difference(4, markdown=5),
           "Second minus first, nats, mean over questions."),
    Column("95 % interval of Δ KL", at("kl_delta_ci95"), fmt.span(4, markdown=5),
           "Bootstrap over questions."),
)  # fmt: skip


def pair_table(comparison: Entry) -> DataTable:
    """Differences between candidates, benchmark by benchmark; no rows for a single candidate."""
    rows = [
        {
            "first": pair["first"],
            "second": pair["second"],
            "name": name,
            "synthetic": comparison["candidates"][pair["first"]]["benchmarks"][name]["synthetic"],
            **entry,
        }
        for pair in comparison["pairs"]
        for name, entry in pair["benchmarks"].items()
    ]
    return DataTable("Differences between candidates", PAIRS, rows)
