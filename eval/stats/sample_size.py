"""Number of questions that a PASS needs, under the score interval that decides the verdict.

`statistics.judge` gives PASS when Tango's one-sided 95 % lower bound is above minus the margin.
The bound is found by inverting the score statistic, so PASS is the same as: the statistic of the
hypothesis "the loss equals the margin" exceeds the critical value.
"""

from __future__ import annotations

import math

from scipy.special import ndtri  # type: ignore[import-untyped]  # scipy has no annotations

from .statistics import PairedOutcome, bounds_in_points, judge, score_statistic
from .verdict import Verdict

MOST_QUESTIONS = 10**8
"""Numbers above this one are reported as unreachable."""


def questions_to_pass(
    lost: int, won: int, margin: float, *, design_effect: float = 1.0
) -> int | None:
    """The smallest number of questions that gives PASS with exactly these flips.

    Args:
        lost: questions that flip from right to wrong, at least 0.
        won: questions that flip from wrong to right, at least 0.
        margin: allowed loss in points, at least 0.
        design_effect: see `clusters.design_effect`, above 0.

    Returns:
        A number of at least `lost + won` and 1; None if none up to `MOST_QUESTIONS` suffices.

    Raises:
        ValueError: negative counts or margin.

    Example:
        >>> questions_to_pass(0, 0, 2.0), questions_to_pass(1, 0, 2.0)
        (133, 222)
    """

    def passes(n: int) -> bool:
        outcome = PairedOutcome(n=n, lost=lost, won=won)
        return _passes(outcome, margin, design_effect)

    low = high = max(lost + won, 1)
    # With fixed counts the bound only rises with n, if it does not pass at once.
    while not passes(high):
        if high >= MOST_QUESTIONS:
            return None
        low, high = high + 1, min(2 * high, MOST_QUESTIONS)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle + 1, high)
    return high


def questions_still_needed(
    outcome: PairedOutcome, margin: float, *, design_effect: float = 1.0
) -> int | None:
    """Questions to add until PASS, if both kinds of flips continue at the observed rates.

    The statistic grows with the square root of the number of questions at fixed rates, which gives
    the number in closed form. Rates vary between samples: with this many questions PASS is about
    as likely as not if the observed rates are the true ones, and no observed flip does not mean
    that the next questions have none.

    Args:
        outcome: observed counts.
        margin: allowed loss in points, at least 0.
        design_effect: see `clusters.design_effect`; assumed to stay as it is.

    Returns:
        0 if the outcome is a PASS already; None if the observed loss is not below the margin, so
        that more questions alone are not expected to give a PASS, or if more than
        `MOST_QUESTIONS` would be needed.

    Raises:
        ValueError: negative margin.

    Example:
        >>> questions_still_needed(PairedOutcome(n=60, lost=0, won=0), 2.0)
        73
    """
    if _passes(outcome, margin, design_effect):
        return 0
    statistic = score_statistic(outcome, -margin / 100)
    if statistic <= 0:
        return None
    critical = float(ndtri(0.95)) * math.sqrt(design_effect)
    total = outcome.n * (critical / statistic) ** 2
    return None if total > MOST_QUESTIONS else max(math.ceil(total) - outcome.n, 1)


def _passes(outcome: PairedOutcome, margin: float, design_effect: float) -> bool:
    bounds = bounds_in_points(outcome, design_effect=design_effect)
    return judge(bounds, margin) is Verdict.PASS
