"""Choice of the best method of a setting, with a run-off where the validation set is inconclusive.

A few samples dominate the mean KL of a set. Methods that the validation set cannot distinguish from
the best one are therefore compared again, on a larger separate set: a race of two rounds (Maron and
Moore, "Hoeffding Races", 1994). The held-out set, on which all methods are reported, is not used;
and the winners of two libraries are compared on a final set that no choice depends on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from common.divergence import Divergence, sample_means

ERRORS = 2.0
"""A method is eliminated if it is worse than the best one by more standard errors than this."""
RUNOFF = 4
"""Samples of the second round per sample of the validation set."""
FINAL = 2
"""Samples of the final set per sample of the held-out set."""


def contenders(measured: Mapping[str, Sequence[Divergence]]) -> list[str]:
    """Methods that a set cannot distinguish from the best one, the best included.

    Args:
        measured: runs of each method, all on the same samples.
    """
    means = {method: sample_means(runs) for method, runs in measured.items()}
    best = min(means.values(), key=fmean)
    return [method for method, values in means.items() if _is_near(values, best)]


def _is_near(values: Sequence[float], best: Sequence[float]) -> bool:
    gaps = [value - least for value, least in zip(values, best, strict=True)]
    return fmean(gaps) <= ERRORS * stdev(gaps) / math.sqrt(len(gaps))


def winner(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Row with the lowest mean KL, on the run-off if there was one, else on the validation set.

    Args:
        rows: rows of one setting, with `validation` and optionally `runoff` from `summarize`.
    """
    candidates = list(rows)
    name = "runoff" if any("runoff" in row for row in candidates) else "validation"
    raced = [row for row in candidates if name in row]
    return min(raced, key=lambda row: float(row[name]["kl_mean"]), default=None)
