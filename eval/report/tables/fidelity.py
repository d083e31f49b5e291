"""Tables of divergences, of the gold option letters, and of the noise floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...fidelity.teacher_forcing import ANSWER_TOKENS
from . import formatting as fmt
from .columns import BENCHMARK, HTML, MARKDOWN, Column, DataTable, Row, at, named_rows
from .scores import SIGNIFICANT

Report = Mapping[str, Any]
NOISE_MATTERS = 3.0
"""Below this multiple of the noise floor, noise is a good part of a candidate's divergence."""
SHARE = fmt.uniform(lambda share: f"{100 * share:.2f} %")


def _mean_and_interval(row: Row) -> tuple[float, Any]:
    return row["kl_unit_mean"], row["kl_unit_mean_ci95"]


def _mean_html(value: tuple[float, Any]) -> str:
    mean, ends = value
    return fmt.nats(mean) + (f" ({fmt.nats(ends[0])} to {fmt.nats(ends[1])})" if ends else "")


def _mean_plain(value: tuple[float, Any]) -> str:
    mean, ends = value
    return f"{mean:.5f}" + (f" [{ends[0]:.5f}, {ends[1]:.5f}]" if ends else "")


_MEAN_AND_INTERVAL = fmt.Format(_mean_html, _mean_plain, _mean_plain)


def _times(multiple: float) -> str:
    """`3.4×`, `2,044×`."""
    return f"{multiple:,.0f}×" if multiple >= 10 else f"{multiple:.1f}×"


def _multiples_of_noise(row: Row) -> str | None:
    texts = [
        f"{_times(multiple)} ({kind})"
        for kind, floor in row.get("noise", {}).items()
        if (multiple := floor["multiples"]["kl_mean"])
    ]
    return ", ".join(texts) or None


DIVERGENCES = (
    BENCHMARK,
    Column("tokens", at("tokens"), fmt.COUNT,
           f"Tokens of the base's answers, reasoning included and the end of turn not; of each "
           f"answer at most the first {ANSWER_TOKENS}."),
    Column("mean KL", at("kl_mean"), fmt.divergence(),
           "Mean divergence of the candidate's next-token probabilities from the base's, in nats; "
           "0 = identical."),
    Column("× noise floor", _multiples_of_noise,
           note="Mean KL as a multiple of the base's own divergence when only batch size or dtype "
           "change.", media=HTML),
    Column("median", at("kl_median"), fmt.divergence(), "Half of the tokens are below.",
           is_detail=True),
    Column("p99", at("kl_p99"), fmt.divergence(".4f"), "One token in a hundred is above."),
    Column("largest", at("kl_max"), fmt.divergence(".3f"), "The worst single token.",
           is_detail=True),
    Column("same top token", at("top1_agreement"), SHARE,
           "How often both models rank the same token first."),
    Column("RMS Δp", at("rms_dp"), SHARE,
           "Root mean square of the change of the answer tokens' probability.", is_detail=True),
    Column("mean over questions", _mean_and_interval, _MEAN_AND_INTERVAL,
           "Mean of the questions' means, with its 95 % bootstrap interval: rotations and tokens "
           "of a question are not independent.", is_detail=True),
    Column("reasoning KL", at("reasoning", "kl_mean"), fmt.divergence(),
           "Mean divergence of the tokens of reasonings.", is_detail=True),
    Column("answer KL", at("answer", "kl_mean"), fmt.divergence(),
           f"Mean divergence of the tokens after a reasoning, of answers that begin within the "
           f"first {ANSWER_TOKENS} tokens.", is_detail=True),
    Column("answer tokens", at("answer", "tokens"), fmt.COUNT, "Their number.", is_detail=True),
    Column("first token", at("first_token", "kl_mean"), fmt.divergence(),
           "Mean divergence of the first token of each answer.", is_detail=True),
    Column("end of turn", at("end_of_turn", "kl_mean"), fmt.divergence(),
           "Mean divergence of the token that ends an answer; it is nearly certain, so it is "
           "counted separately.", is_detail=True),
)  # fmt: skip


def divergence_table(report: Report) -> DataTable | None:
    """One row per benchmark and one over all of them; None if nothing was measured."""
    if report["fidelity"] is None:
        return None
    rows = [*_per_benchmark(report), {"name": "all", **report["fidelity"]}]
    return DataTable("Divergence from the base", DIVERGENCES, rows)


GOLD = (
    BENCHMARK,
    Column("n", at("gold", "n"), fmt.COUNT, "Questions with options."),
    Column("Δ log p", at("gold", "delta"), fmt.difference(4),
           "Log-probability of the gold option letter (the right option) as the first token of the "
           "answer, candidate minus base, in nats; below 0 the candidate is less sure."),
    Column("95 % interval", at("gold", "delta_ci95"), fmt.span(4)),
    Column("among the letters", at("gold", "choice_delta"), fmt.difference(4),
           "The same, relative to the option letters alone.", is_detail=True),
    Column("95 % interval of that", at("gold", "choice_delta_ci95"), fmt.span(4), is_detail=True),
    Column("p", at("gold", "p"), fmt.P_VALUE,
           "Paired t-test of the change among the letters, which shows damage long before an "
           "answer flips.", is_detail=True),
)  # fmt: skip


def gold_table(report: Report) -> DataTable | None:
    """Change of the gold option letters' probability; None if no question has options."""
    rows = [row for row in _per_benchmark(report) if row["gold"]]
    if not rows:
        return None
    p_values = [row["gold"]["p"] for row in rows if row["gold"].get("p") is not None]
    is_notable = min(p_values, default=1.0) < SIGNIFICANT
    return DataTable("Gold option letters", GOLD, rows, is_notable)


def _setup(row: Row) -> str:
    setup = {"batch": ("batch size", "batch_size"), "dtype": ("dtype", "dtype")}
    word, key = setup[row["kind"]]
    return f"{word} {row[key]}"


def _multiple(key: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        value = row["multiples"][key]
        return "no noise" if value is None else _times(value)

    return text


NOISE = (
    BENCHMARK,
    Column("the base with", _setup, style="name"),
    Column("questions", at("units"), fmt.COUNT, "A sample, stratified by category."),
    Column("tokens", at("fidelity", "tokens"), fmt.COUNT, media=MARKDOWN),
    Column("mean KL", at("fidelity", "kl_mean"), fmt.divergence(".2g"),
           "Divergence of the base from itself."),
    Column("same top token", at("fidelity", "top1_agreement"), SHARE),
    Column("changed answers", lambda r: f"{r['changed_answers']} of {r['answers']}",
           note="Answers with another text."),
    Column("flips", at("flips"), fmt.COUNT, "Questions that became right or wrong."),
    Column("candidate's KL", _multiple("kl_mean"), note="As a multiple."),
    Column("candidate's changed top tokens", _multiple("top1_disagreement"), note="As a multiple."),
)  # fmt: skip


def noise_table(report: Report) -> DataTable | None:
    """Divergence of the base from itself; None if it was not measured."""
    if report["fidelity"] is None:
        return None
    entries = [*_per_benchmark(report), {"name": "all", **report["fidelity"]}]
    rows = [
        {"name": entry["name"], "synthetic": entry.get("synthetic"), "kind": kind, **floor}
        for entry in entries
        for kind, floor in entry["noise"].items()
    ]
    if not rows:
        return None
    return DataTable("Noise floor: the base against itself", NOISE, rows, any(map(_matters, rows)))


def _matters(row: Row) -> bool:
    """Whether noise flips answers, or explains a good part of the candidate's divergence."""
    multiple = row["multiples"]["kl_mean"]
    return row["flips"] > 0 or (multiple is not None and multiple < NOISE_MATTERS)


def _per_benchmark(report: Report) -> list[dict[str, Any]]:
    if report["fidelity"] is None:
        return []
    rows = named_rows(report["fidelity"]["per_benchmark"].items())
    return [{**row, "synthetic": report["benchmarks"][row["name"]]["synthetic"]} for row in rows]
