"""The score tables of a page: every benchmark, every category, every candidate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from .formatting import interval, nats, number, optional, p_value, ratio, signed, size
from .plots import IntervalRow
from .table import Cell, Column, Table, make_table

Named = tuple[str, Mapping[str, Any]]

SYNTHETIC = "synthetic"


def verdict_cell(verdict: str) -> Cell:
    """A verdict with its colour; the word itself says it all."""
    return Cell(verdict, f"verdict {verdict.lower()}")


def bench_cell(row: Named) -> Cell:
    """A benchmark's name; drawn ones are marked wherever they appear."""
    return Cell(row[0], SYNTHETIC if row[1].get("synthetic") else "")


def delta_style(low: float, high: float) -> str:
    """Whether a difference is shown to be a gain or a loss."""
    return "gain" if low > 0 else "loss" if high < 0 else ""


def _delta(entry: Mapping[str, Any]) -> Cell:
    return Cell(signed(entry["delta"], 2), delta_style(*entry["ci95"]))


def _optional_p(entry: Mapping[str, Any], key: str) -> str | None:
    return p_value(entry[key]) if entry.get(key) is not None else None


def _optional_points(entry: Mapping[str, Any], key: str) -> str | None:
    return number(entry[key], 2) if entry.get(key) is not None else None


HEADLINE = (
    Column("benchmark", bench_cell, style="name"),
    Column("verdict", lambda r: verdict_cell(r[1]["verdict"]), "Whether the loss is shown to stay "
           "below the margin (PASS), to exceed it (FAIL), or neither.", "mid"),
    Column("n", lambda r: f"{r[1]['n']:,}", "Questions that count once; the rotations of a "
           "multiple-choice question count together."),
    Column("base", lambda r: number(r[1]["base"], 2), "Share of questions that the original "
           "answers right, in percent."),
    Column("candidate", lambda r: number(r[1]["candidate"], 2), "The same for the candidate."),
    Column("Δ", lambda r: _delta(r[1]), "Candidate minus base, in points."),
    Column("95 % interval", lambda r: interval(r[1]["ci95"], 2), "Range of true differences that "
           "agrees with the answers (Tango's score interval for paired proportions), in points."),
    Column("bounds", lambda r: interval([r[1]["lower95"], r[1]["upper95"]], 2), "One-sided 95 % "
           "bounds of Δ: PASS where the lower one is above minus the margin, FAIL where the upper "
           "one is below it."),
    Column("McNemar p", lambda r: p_value(r[1]["mcnemar_p"]), "How often equally good models would "
           "give at least as uneven flips (exact test)."),
    Column("Holm p", lambda r: _optional_p(r[1], "mcnemar_p_holm"), "McNemar's p, adjusted for the "
           "number of benchmarks."),
    Column("detectable", lambda r: _optional_points(r[1], "detectable"), "Smallest true "
           "difference, in points, that so many questions would find four times in five."),
    Column("lost / won", lambda r: _flips(r[1].get("flips")), "Questions that went from right to "
           "wrong and from wrong to right."),
)  # fmt: skip


def _flips(flips: Mapping[str, int] | None) -> str | None:
    if flips is None:
        return None
    return f"{flips['right_to_wrong']} / {flips['wrong_to_right']}"


def headline(benchmarks: Mapping[str, Any], pooled: Mapping[str, Any]) -> Table:
    """One row per benchmark, and one for each that is asked in several languages as a whole."""
    rows = [*benchmarks.items(), *pooled.items()]
    return make_table("Scores of both models on every benchmark", HEADLINE, rows)


CATEGORIES = (
    Column("category", lambda r: r[0], style="name"),
    Column("n", lambda r: r[1]["n"], "Questions of the category."),
    Column("base", lambda r: number(r[1]["base"]), "Percent right."),
    Column("candidate", lambda r: number(r[1]["candidate"]), "Percent right."),
    Column("Δ", lambda r: Cell(signed(r[1]["delta"]), delta_style(*r[1]["ci95"])), "In points."),
    Column("95 % interval", lambda r: interval(r[1]["ci95"]), "In points; not adjusted for the "
           "number of categories: of twenty, one is expected to look like a loss or a gain."),
    Column("lost / won", lambda r: f"{r[1]['right_to_wrong']} / {r[1]['wrong_to_right']}",
           "Right to wrong, wrong to right."),
    Column("adjusted p", lambda r: _optional_p(r[1], "p_adjusted"), "McNemar's p after Benjamini "
           "and Hochberg over the categories, coarse and fine ones apart."),
    Column("mean KL", lambda r: None if r[1].get("kl_mean") is None else nats(r[1]["kl_mean"]),
           "Nats per answer token."),
)  # fmt: skip


def categories(name: str, entry: Mapping[str, Any]) -> Table:
    """Coarse categories, then fine ones, of one benchmark."""
    divergent = entry.get("divergent", {})
    rows = [(f"all {k}", v) for k, v in _coarse(entry).items()]
    rows += [(k, {**v, **divergent.get(k, {})}) for k, v in entry["categories"].items()]
    return make_table(f"Categories of {name}", CATEGORIES, rows)


def interval_rows(entry: Mapping[str, Any]) -> list[IntervalRow]:
    """What the interval plot of a benchmark shows: all, coarse, then fine, the worst first."""

    def row(label: str, part: Mapping[str, Any], is_total: bool = False) -> IntervalRow:
        low, high = part["ci95"]
        return IntervalRow(label, part["n"], part["delta"], low, high, is_total)

    def worst_first(parts: Mapping[str, Any], prefix: str = "") -> list[IntervalRow]:
        ordered = sorted(parts.items(), key=lambda part: (part[1]["delta"], part[0]))
        return [row(prefix + key, part) for key, part in ordered]

    return [
        row("all questions", entry, is_total=True),
        *worst_first(_coarse(entry), "all "),
        *worst_first(entry["categories"]),
    ]


def _coarse(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Coarse categories that are not at the same time fine ones."""
    return {k: v for k, v in entry["groups"].items() if k not in entry["categories"]}


def candidates(comparison: Mapping[str, Any]) -> Table:
    """One row per candidate, with its change on every benchmark and a link to its own page."""
    benchmarks = next(iter(comparison["candidates"].values()))["benchmarks"]
    columns = [
        Column("candidate", _link, style="name"),
        Column("verdict", lambda r: verdict_cell(r[1]["verdict"]), "Over all benchmarks.", "mid"),
        *(_bench_column(name, entry) for name, entry in benchmarks.items()),
        Column("mean score", lambda r: number(r[1]["mean_score"]["candidate"], 2), "Mean of the "
               "benchmarks' scores, each counting the same, in percent."),
        Column("mean KL", _kl, "Divergence from the base, nats per answer token."),
        Column("weights", lambda r: size(r[1]["size"]["candidate_bytes"]), "Of the checkpoint."),
        Column("of the base", lambda r: ratio(r[1]["size"]["candidate_bytes"],
               r[1]["size"]["base_bytes"]), "Size as a multiple of the base's."),
        Column("bits", lambda r: optional(r[1]["size"]["bits_per_weight"], 2), "Per weight, over "
               "the whole model."),
    ]  # fmt: skip
    return make_table("All candidates", columns, comparison["candidates"].items())


def _marked(comparison: Mapping[str, Any], candidate: str, name: str) -> Cell:
    return bench_cell((name, comparison["candidates"][candidate]["benchmarks"][name]))


def _link(row: Named) -> Cell:
    return Cell(row[0], href=f"{quote(row[0])}/report.html")


def _kl(row: Named) -> str | None:
    return nats(row[1]["fidelity"]["kl_mean"]) if row[1]["fidelity"] else None


def _bench_column(name: str, shared: Mapping[str, Any]) -> Column:
    def cell(row: Named) -> Cell:
        entry = row[1]["benchmarks"][name]
        text = f"{number(entry['candidate'])} ({signed(entry['delta'])})"
        return Cell(text, f"judged {entry['verdict'].lower()}")

    head = f"{name} ({SYNTHETIC})" if shared.get("synthetic") else name
    note = "Score in percent, and its difference from the base in points."
    return Column(head, cell, note, "number wrap")


def pairs(comparison: Mapping[str, Any]) -> Table | None:
    """Differences between candidates, benchmark by benchmark; None for a single candidate."""
    rows = [
        (pair["first"], pair["second"], _marked(comparison, pair["first"], name), entry)
        for pair in comparison["pairs"]
        for name, entry in pair["benchmarks"].items()
    ]
    columns = (
        Column("first", lambda r: r[0], style="name"),
        Column("second", lambda r: r[1], style="name"),
        Column("benchmark", lambda r: r[2], style="name"),
        Column("Δ", lambda r: _delta(r[3]), "Second minus first, in points."),
        Column("95 % interval", lambda r: interval(r[3]["ci95"], 2), "Of the paired difference."),
        Column("McNemar p", lambda r: p_value(r[3]["mcnemar_p"]), "Exact test of the flips."),
        Column("Δ KL", lambda r: None if r[3]["kl_delta"] is None
               else signed(r[3]["kl_delta"], 4), "Second minus first, nats, mean over questions."),
        Column("its 95 % interval", lambda r: r[3]["kl_delta_ci95"]
               and interval(r[3]["kl_delta_ci95"], 4), "Bootstrap over questions."),
    )  # fmt: skip
    return make_table("Differences between candidates", columns, rows) if rows else None
