"""Aggregation of divergences over answers, for reports."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from ..answering.predictions import Record
from ..stats.statistics import Interval, mean_interval
from ..tasks.task import Fields, is_broken

FULL, LUMPED = "full", "lumped"
COMMON = {FULL: "common", LUMPED: "common_lumped"}
"""Kinds over the tokens that two vocabularies have in common, by the kind of the base's store."""
REASONING = "reasoning"


def find_kl_kind(records: Iterable[Record]) -> str:
    """Return the kind that all answers have: full only if all do, else lumped.

    Over common tokens, it is the kind of `COMMON` for the base's store.
    """
    stored = list(records)
    if bases := {record["common"] for record in stored if "common" in record}:
        return COMMON[LUMPED if LUMPED in bases else FULL]
    return FULL if all("kl_lumped" in record for record in stored) else LUMPED


def are_comparable(first: str, second: str) -> bool:
    """Whether divergences of two kinds are over the same tokens, see `find_kl_kind`."""
    return first == second or not {first, second} & {*COMMON.values()}


def summarize_fidelity(records: Iterable[Record], kind: str | None = None) -> dict[str, Any] | None:
    """Pool records over their answer tokens; None if there are no tokens.

    Args:
        records: records of `measure.compare_answer`.
        kind: see `find_kl_kind`; None: that of the records. Kinds are never mixed.

    Returns:
        `tokens`, `kl_kind`, `kl_mean`, `kl_median`, `kl_p99`, `kl_max` (nats), `top1_agreement`
        (fraction), `rms_dp` (root mean square of the change in the tokens' probability);
        `end_of_turn` and `first_token` (of the answer, after a reasoning) have the same values for
        these tokens alone, `reasoning` and `answer` for both parts of answers with a reasoning;
        None without such tokens. Over common tokens, `vocabulary` has `answers`, `answers_left_out`
        for want of removed tokens, and `removed_mass`, the base's mean probability of those.
    """
    stored = list(records)
    kind = kind or find_kl_kind(stored)
    tokens = _pool(_tokens(stored, kind), kind)
    if tokens is None:
        return None
    firsts = [_part(r, r.get(REASONING, 0), r.get(REASONING, 0) + 1) for r in stored]
    with_reasoning = [r for r in stored if REASONING in r]
    reasonings = [_part(r, 0, r[REASONING]) for r in with_reasoning]
    answers = [_part(r, r[REASONING], None) for r in with_reasoning]
    ends = [{k: [v] for k, v in r["end"].items()} for r in stored if r["end"]]
    return {
        **tokens,
        "first_token": _pool(_tokens(firsts, kind), kind),
        "end_of_turn": _pool(_tokens(ends, kind), kind),
        "reasoning": _pool(_tokens(reasonings, kind), kind),
        "answer": _pool(_tokens(answers, kind), kind),
        **({"vocabulary": _left_out(stored)} if kind in COMMON.values() else {}),
    }


def _left_out(records: Sequence[Record]) -> dict[str, Any]:
    """Describe what a comparison over common tokens leaves out."""
    masses = [mass for record in records for mass in record["removed_mass"]]
    return {
        "answers": len(records),
        "answers_left_out": sum("left_out" in record for record in records),
        "removed_mass": fmean(masses),
    }


_PARTS = ("kl", "kl_lumped", "top1", "dp")
Tokens = tuple[list[float], list[int], list[float]]


def _part(record: Record, begin: int, end: int | None) -> Record:
    """Return the values of some of an answer's tokens; without the others, and without `end`."""
    return {key: record[key][begin:end] for key in _PARTS if key in record}


def _tokens(records: Sequence[Mapping[str, Any]], kind: str) -> Tokens:
    """Collect the divergence, agreement and change in probability of all tokens."""
    kl = [k for record in records for k in divergences(record, kind)]
    top1 = [t for record in records for t in record["top1"]]
    return kl, top1, [d for record in records for d in record["dp"]]


def divergences(record: Mapping[str, Any], kind: str) -> list[float]:
    """Return the divergences of one answer in nats, of one kind."""
    values: list[float] = record.get("kl_lumped", record["kl"]) if kind == LUMPED else record["kl"]
    return values


def _pool(tokens: Tokens, kind: str) -> dict[str, Any] | None:
    kl, top1, dp = tokens
    if not kl:
        return None
    return {
        "tokens": len(kl),
        "kl_kind": kind,
        "kl_mean": fmean(kl),
        "kl_median": float(np.median(kl)),
        "kl_p99": float(np.percentile(kl, 99)),
        "kl_max": max(kl),
        "top1_agreement": fmean(top1),
        "rms_dp": math.sqrt(fmean(d * d for d in dp)),
    }


def unit_divergences(
    items: Sequence[Fields], records: Mapping[str, Record], kind: str = FULL
) -> dict[str, float]:
    """Return the mean divergence per unit: rotations of a question are not independent samples.

    Items without answer tokens are omitted, and units that have only such items.
    """
    values: dict[str, list[float]] = {}
    for item in items:
        if not is_broken(item) and (kl := divergences(records[item["id"]], kind)):
            values.setdefault(item["unit"], []).append(fmean(kl))
    return {unit: fmean(means) for unit, means in values.items()}


def by_category(
    items: Sequence[Fields], records: Mapping[str, Record], kind: str
) -> dict[str, dict[str, Any]]:
    """Return tokens and mean divergence of each category, with its interval over units."""
    chosen: dict[str, list[Fields]] = {}
    for item in items:
        if not is_broken(item):
            chosen.setdefault(item["category"], []).append(item)
    categories = {}
    for name in sorted(chosen):
        pooled = _pool(_tokens([records[i["id"]] for i in chosen[name]], kind), kind)
        interval = divergence_interval(list(unit_divergences(chosen[name], records, kind).values()))
        if pooled:
            categories[name] = {
                **{key: pooled[key] for key in ("tokens", "kl_mean", "top1_agreement")},
                "kl_unit_mean_ci95": interval and [interval.low, interval.high],
            }
    return categories


def divergence_interval(values: Sequence[float], seed: int = 0) -> Interval | None:
    """Return the interval of the mean over units; None for fewer than two."""
    return mean_interval(values, seed=seed) if len(values) > 1 else None


def gold_change(items: Sequence[Fields], records: Mapping[str, Record]) -> dict[str, Any] | None:
    """Compute the change in the log-probability of the gold option letter.

    This outcome is continuous and changes long before an answer flips, so far fewer questions are
    needed to detect a change.

    Returns:
        Over units (means of their rotations): `n`, `delta` and `delta_ci95` of the letter's
        log-probability (nats, candidate minus base), `choice_delta` and `choice_delta_ci95` of its
        log-probability among the option letters alone, and `p` of the paired t-test of
        `choice_delta`; None for fewer than two units.
    """
    plain = _unit_pairs(items, records, "gold")
    among = _unit_pairs(items, records, "choice")
    if len(plain) < 2:
        return None
    delta, choice = ([b - a for a, b in pairs] for pairs in (plain, among))
    return {
        "n": len(plain),
        "delta": fmean(delta),
        "delta_ci95": _ends(mean_interval(delta)),
        "choice_delta": fmean(choice),
        "choice_delta_ci95": _ends(mean_interval(choice)),
        "p": _paired_p(among),
    }


def _unit_pairs(
    items: Sequence[Fields], records: Mapping[str, Record], key: str
) -> list[tuple[float, float]]:
    """Return the values of base and candidate of each unit, averaged over its rows."""
    values: dict[str, list[list[float]]] = {}
    for item in items:
        if not is_broken(item) and (pair := records[item["id"]].get(key)):
            values.setdefault(item["unit"], []).append(pair)
    return [
        (fmean(base for base, _ in pairs), fmean(cand for _, cand in pairs))
        for pairs in values.values()
    ]


def _paired_p(pairs: Sequence[tuple[float, float]]) -> float:
    if len({candidate - base for base, candidate in pairs}) == 1:
        return 1.0 if pairs[0][0] == pairs[0][1] else 0.0
    base, candidate = zip(*pairs, strict=True)
    from scipy.stats import ttest_rel  # type: ignore[import-untyped]  # half a second

    return float(ttest_rel(candidate, base).pvalue)


def _ends(interval: Interval) -> list[float]:
    return [interval.low, interval.high]
