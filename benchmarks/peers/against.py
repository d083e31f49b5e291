"""Comparison of vlpress with the peers: equal methods, and the best method of each.

Reads results/accuracy.json, written by `benchmarks/accuracy.py` for the same models, calibration
samples, seeds and evaluation samples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.choice import winner
from common.divergence import Divergence, paired
from tabulate import tabulate

Row = dict[str, Any]
Runs = Callable[[Row, Row], tuple[Sequence[Divergence], Sequence[Divergence]] | None]
"""Divergences per sample of a row of vlpress and one of a peer, by calibration seed; None if they
are not stored."""

EQUIVALENT = {
    "rtn": "rtn",
    "rtn-mse": "rtn",
    "gptq-mse": "gptq",
    "awq+rtn": "awq+rtn",
    "awq+gptq-mse": "awq+gptq",
    "smoothquant+gptq-mse": "smoothquant+gptq",
}
"""A peer's method, and the equivalent method of vlpress: searched scales, alpha of 0.8."""


def equivalent_pairs(
    ours: Sequence[Row], theirs: Sequence[Row], runs: Runs = lambda own, other: None
) -> list[dict[str, Any]]:
    """Pairs of rows with equivalent methods.

    Args:
        ours: rows of one model in accuracy.json.
        theirs: rows of the same model in peers.json.
        runs: for the interval of the paired difference.
    """
    rows_by_method = {(r["setting"], r["method"]): r for r in ours if r["scope"] == "decoder"}
    pairs = []
    for row in theirs:
        key = row["setting"], EQUIVALENT.get(row["method"], "")
        if key in rows_by_method:
            pair = _pair(row["setting"], own := rows_by_method[key], row)
            if (both := runs(own, row)) is not None:
                interval = paired(*both)
                pair["difference"] = [interval.low, interval.high]
            pairs.append(pair)
    return pairs


def best(ours: Sequence[Row], theirs: Sequence[Row]) -> list[dict[str, Any]]:
    """Best methods of vlpress and of each peer by setting, chosen by `winner`."""
    pairs = []
    for setting in dict.fromkeys(row["setting"] for row in theirs):
        own = winner(r for r in ours if r["setting"] == setting and r["scope"] == "decoder")
        for peer in dict.fromkeys(r["peer"] for r in theirs if r["setting"] == setting):
            other = winner(r for r in theirs if (r["setting"], r["peer"]) == (setting, peer))
            if own is not None and other is not None:
                both = "final" in own and "final" in other
                pairs.append(_pair(setting, own, other, "final" if both else "held_out"))
    return pairs


def _pair(setting: str, ours: Row, theirs: Row, name: str = "held_out") -> dict[str, Any]:
    left, right = ours[name], theirs[name]
    if left["samples"] != right["samples"]:
        raise ValueError(
            f"{setting} is measured on {left['samples']} samples in accuracy.json, on "
            f"{right['samples']} here; run both benchmarks with the same --held-out"
        )
    return {
        "setting": setting,
        "ours": ours["method"],
        "peer": theirs["peer"],
        "theirs": theirs["method"],
        "our_kl": left["kl_mean"],
        "our_ci95": left["ci95"],
        "their_kl": right["kl_mean"],
        "their_ci95": right["ci95"],
        "samples": left["samples"],
        "ratio": left["kl_mean"] / right["kl_mean"],
    }


def sections(
    model: str, ours: Sequence[Row], theirs: Sequence[Row], runs: Runs = lambda own, other: None
) -> list[str]:
    """Both tables of one model as Markdown."""
    return [
        f"## {model}: equivalent methods",
        _table(equivalent_pairs(ours, theirs, runs)),
        f"## {model}: best methods",
        _table(best(ours, theirs)),
    ]


def _table(pairs: Sequence[Mapping[str, Any]]) -> str:
    head = ["setting", "samples", "vlpress", "KL", "peer", "method", "KL", "ratio"]
    if any("difference" in pair for pair in pairs):
        head.append("difference")
    body = [
        [
            pair["setting"],
            pair["samples"],
            pair["ours"],
            _kl(pair["our_kl"], pair["our_ci95"]),
            pair["peer"],
            pair["theirs"],
            _kl(pair["their_kl"], pair["their_ci95"]),
            f"{pair['ratio']:.2f}",
            *([_difference(*pair["difference"])] if "difference" in pair else []),
        ]
        for pair in pairs
    ]
    return tabulate(body, head, tablefmt="github", disable_numparse=True)


def _difference(low: float, high: float) -> str:
    return f"[{low:+.5f}, {high:+.5f}]"


def _kl(mean: float, ends: Sequence[float]) -> str:
    return f"{mean:.5f} [{ends[0]:.5f}, {ends[1]:.5f}]"
