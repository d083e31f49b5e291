"""Tables about the answers of both models: health, reasonings, and samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...tasks.generated.repetition import LEAST, REPEATS
from ..sections.lengths import ANSWER, CUT_OFF, REASONING, REPEATING
from . import formatting as fmt
from .columns import BENCHMARK, HTML, MARKDOWN, Column, DataTable, at, at_or_unknown, named_rows

Report = Mapping[str, Any]
SIDES = ("base", "candidate")

SAMPLING = (
    BENCHMARK,
    Column("model", at("model"), style="name"),
    Column("samples", at("sampling", "samples"), fmt.COUNT, "Sampled answers to each question."),
    Column("score", at("score"), fmt.fixed(2), "Mean over questions and samples, in percent."),
    Column("95 % interval", at("sampling", "ci95"), fmt.bounds(2),
           "Confidence interval of the score, clustered by question (Wilson's score interval, "
           "scaled by the variance of the questions' means), in percent."),
    Column("lowest run", lambda r: min(r["sampling"]["scores"]), fmt.fixed(2),
           "A run is one sampled answer to every question."),
    Column("highest run", lambda r: max(r["sampling"]["scores"]), fmt.fixed(2)),
    Column("SD of runs", at("sampling", "sd"), fmt.fixed(2),
           "Standard deviation of the scores of the runs, in points."),
)  # fmt: skip


def sampling_table(benchmarks: Report) -> DataTable | None:
    """Two rows per benchmark: the base and the candidate; None if the answers are greedy."""
    rows = [
        {**row, "model": side, "score": row[side], "sampling": row["sampling"][side]}
        for row in named_rows(benchmarks.items())
        for side in SIDES
        if "sampling" in row
    ]
    return DataTable("Scores of the sampled answers", SAMPLING, rows) if rows else None


HEALTH = (
    BENCHMARK,
    Column("model", at("model"), style="name"),
    Column("rows", at("n_rows"), fmt.COUNT, "Prompts, rotations included.", media=HTML),
    Column("broken", at("health", "broken"), fmt.COUNT,
           "Rows that cannot be sent to a model; they count as wrong.", media=MARKDOWN),
    Column("unreadable", at("health", "parse_failures"), fmt.COUNT,
           "Answers from which no option can be extracted; they count as wrong."),
    Column("refused", at("health", "refusals"), fmt.COUNT,
           "Answers that decline; they count as wrong."),
    Column("cut off", at("health", "truncated"), fmt.COUNT,
           "Answers that reached the token limit, or whose reasoning does not end. An answer "
           "without an end of its reasoning is scored as an empty one."),
    Column("repeating", at("health", "repeating"), fmt.COUNT,
           "Answers or reasonings that end in the same piece of text at least "
           f"{REPEATS} times in a row, over at least {LEAST} characters."),
    Column("empty", at("health", "empty"), fmt.COUNT, "Answers without any text."),
    Column("same answer", at("signs", "identical"), fmt.PERCENT,
           "Share of the most common answer; option letters count as answers."),
    Column("score, lower bound", at("signs", "score_lower95"), fmt.PERCENT,
           "Exact one-sided 95 % bound; it must be above chance."),
    Column("chance", at("signs", "chance"), fmt.PERCENT,
           "Expected score of guessing: one of the options, independently for each rotation; 0 for"
           " open questions."),
    Column("mean tokens", at_or_unknown("health", "mean_tokens"), fmt.fixed(1),
           "Mean length of an answer, its reasoning included."),
)  # fmt: skip


def health_table(benchmarks: Report) -> DataTable:
    """Two rows per benchmark: the base and the candidate."""
    rows = [
        {
            **row,
            "model": side,
            "health": row["health"][side],
            "signs": row["signs"][side],
        }
        for row in named_rows(benchmarks.items())
        for side in ("base", "candidate")
    ]
    return DataTable("Health of the answers", HEALTH, rows)


REASONING_COLUMNS = (
    BENCHMARK,
    Column("model", at("model"), style="name"),
    Column("reasonings", at_or_unknown("health", "reasoning", "answers"), fmt.COUNT,
           "Answers with a reasoning."),
    Column("unfinished", at_or_unknown("health", "reasoning", "unfinished"), fmt.COUNT,
           "Reasonings without an end: the answer counts as cut off, and an empty one is scored."),
    Column("mean tokens", at_or_unknown("health", "reasoning", "mean_tokens"), fmt.fixed(1),
           "Mean length of a reasoning."),
    Column("median tokens", at_or_unknown("health", "reasoning", "median_tokens"), fmt.fixed(1)),
    Column("p95 tokens", at_or_unknown("health", "reasoning", "p95_tokens"), fmt.COUNT,
           "95 % of the reasonings have at most this many tokens."),
)  # fmt: skip


def reasoning_table(benchmarks: Report) -> DataTable | None:
    """The models' reasonings on every benchmark; None if there are none."""
    rows = [row for row in health_table(benchmarks).rows if row["health"].get("reasoning")]
    return DataTable("Reasoning before the answers", REASONING_COLUMNS, rows) if rows else None


LENGTHS = (
    BENCHMARK,
    Column("tokens of", at("part"), style="name"),
    Column("base, mean", at_or_unknown("base", "mean"), fmt.fixed(1),
           "Over all answers; a reasoning that is missing has 0 tokens."),
    Column("base, median", at_or_unknown("base", "median"), fmt.fixed(1)),
    Column("candidate, mean", at_or_unknown("candidate", "mean"), fmt.fixed(1)),
    Column("candidate, median", at_or_unknown("candidate", "median"), fmt.fixed(1)),
    Column("ratio", at("ratio"), fmt.fixed(2), "Tokens of the candidate / tokens of the base."),
    Column("95 % interval", at("ci95"), fmt.bounds(2),
           "Bootstrap of the ratio over questions, from 10 questions on."),
)  # fmt: skip
FAULTS = (
    BENCHMARK,
    Column("answers that", at("part"), style="name"),
    Column("base", at("base"), fmt.PERCENT, "Share of all answers."),
    Column("candidate", at("candidate"), fmt.PERCENT),
    Column("Δ", at("delta"), fmt.difference(2), "Candidate minus base, in points."),
    Column("95 % interval", at("ci95"), fmt.span(2),
           "Confidence interval of the paired difference by question, in points."),
)  # fmt: skip
PARTS = {REASONING: "reasonings", ANSWER: "answers"}
ENDINGS = {CUT_OFF: "have no end", REPEATING: "repeat themselves"}


def length_table(benchmarks: Report) -> DataTable | None:
    """Tokens of reasonings and answers on every benchmark; None if no answer has a reasoning."""
    rows = _length_rows(benchmarks, PARTS)
    return DataTable("Lengths of reasonings and answers", LENGTHS, rows) if rows else None


def fault_table(benchmarks: Report) -> DataTable | None:
    """Answers without an end and in a loop; None if no answer has a reasoning."""
    rows = _length_rows(benchmarks, ENDINGS)
    return DataTable("Answers without an end, and in a loop", FAULTS, rows) if rows else None


def _length_rows(benchmarks: Report, parts: Mapping[str, str]) -> list[dict[str, Any]]:
    marks = ("name", "synthetic", "limited")
    return [
        {**{key: row.get(key) for key in marks}, "part": text, **row["lengths"][part]}
        for row in named_rows(benchmarks.items())
        if "lengths" in row
        for part, text in parts.items()
    ]
