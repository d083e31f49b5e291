"""Which method of a setting is best, also where the validation set can hardly tell.

A few drawings carry the mean KL of a set. Methods that the validation set does not tell from the
best one therefore meet again, on a larger set of their own: a race of two rounds (Maron and Moore,
"Hoeffding Races", 1994). The held-out set, on which all are reported, has no part in it; and the
winners of two libraries are compared on a final set that neither these choices nor we have seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from common.divergence import Divergence, sample_means

ERRORS = 2.0
"""A method is out of the race if it is worse than the best by more standard errors."""
RUNOFF = 4
"""Drawings of the second round for each of the validation set."""
FINAL = 2
"""Drawings of the final set for each of the held-out set."""


def contenders(measured: Mapping[str, Sequence[Divergence]]) -> list[str]:
    """Methods that a set does not tell from the best one; the best alone if it is clear.

    Args:
        measured: runs of each method, all on the same drawings.
    """
    means = {method: sample_means(runs) for method, runs in measured.items()}
    best = min(means.values(), key=fmean)
    return [method for method, values in means.items() if _is_near(values, best)]


def _is_near(values: Sequence[float], best: Sequence[float]) -> bool:
    behind = [value - least for value, least in zip(values, best, strict=True)]
    return fmean(behind) <= ERRORS * stdev(behind) / math.sqrt(len(behind))


def winner(rows: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of least mean KL on the run-off if there was one, else on the validation set.

    Args:
        rows: of one setting, `validation` and perhaps `runoff` being what `summarize` returns.
    """
    known = list(rows)
    name = "runoff" if any("runoff" in row for row in known) else "validation"
    raced = [row for row in known if name in row]
    return min(raced, key=lambda row: float(row[name]["kl_mean"]), default=None)
