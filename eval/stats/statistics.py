"""Two models on the same questions: intervals, tests and the verdict.

Differences are candidate minus base. For right/wrong answers the interval is Tango's score
interval for the difference of paired proportions (Tango, "Equivalence test and confidence
interval for the difference in proportions for the paired-sample design", Statistics in Medicine
17, 1998): unlike the normal approximation it keeps its coverage when few answers differ, and it
does not collapse to a point when none do. Units that hang together (`clusters`) make it wider.
The verdict is one of non-inferiority.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq  # type: ignore[import-untyped]  # scipy has no annotations
from scipy.stats import binomtest, bootstrap, norm  # type: ignore[import-untyped]

from .verdict import Verdict

CI_KIND = "tango"
RESAMPLES = 9999
_BATCH = 256  # resamples drawn at a time: bounds the memory of a bootstrap over thousands of items


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedOutcome:
    """Right/wrong counts of two models on the same `n` units."""

    n: int
    lost: int  # base right, candidate wrong
    won: int  # base wrong, candidate right

    def __post_init__(self) -> None:
        """Refuse impossible counts."""
        if self.n < 1 or self.lost < 0 or self.won < 0 or self.lost + self.won > self.n:
            raise ValueError(
                f"{self.lost} lost and {self.won} won of {self.n} units is impossible; "
                "counts are not negative and sum to at most n >= 1"
            )

    @property
    def delta(self) -> float:
        """Difference of proportions, candidate minus base, in [-1, 1]."""
        return (self.won - self.lost) / self.n


def count_outcomes(base: Sequence[bool], candidate: Sequence[bool]) -> PairedOutcome:
    """Count wins and losses unit by unit.

    Raises:
        ValueError: different or zero lengths.
    """
    if len(base) != len(candidate) or not base:
        raise ValueError(
            f"{len(base)} base and {len(candidate)} candidate units; both need the same, "
            "at least one"
        )
    pairs = list(zip(base, candidate, strict=True))
    return PairedOutcome(
        n=len(pairs),
        lost=sum(b and not c for b, c in pairs),
        won=sum(c and not b for b, c in pairs),
    )


def paired_interval(
    outcome: PairedOutcome, level: float = 0.95, *, design_effect: float = 1.0
) -> Interval:
    """Tango's two-sided score interval for the difference of paired proportions.

    Args:
        outcome: the counts.
        level: coverage, as a fraction.
        design_effect: how many units say as much as one independent unit, see `clusters`.

    Returns:
        Bounds in [-1, 1] that contain `outcome.delta`.
    """
    z = float(norm.ppf(0.5 + level / 2)) * math.sqrt(design_effect)
    return Interval(_score_bound(outcome, z, -1), _score_bound(outcome, z, +1))


def one_sided_bounds(
    outcome: PairedOutcome, level: float = 0.95, *, design_effect: float = 1.0
) -> Interval:
    """One-sided score bounds at `level` each: a lower and an upper one, not a joint interval."""
    return paired_interval(outcome, 2 * level - 1, design_effect=design_effect)


def _score_bound(outcome: PairedOutcome, z: float, side: int) -> float:
    """The difference on `side` of the estimate whose score statistic is `z` in size."""
    estimate, end = outcome.delta, float(side)

    def excess(delta: float) -> float:
        return abs(_score(outcome, delta)) - z

    if estimate == end:
        return end
    # The statistic is 0 at the estimate and grows beyond any bound towards the end.
    near_end = math.nextafter(end, estimate)
    if excess(near_end) <= 0:
        return end
    return float(brentq(excess, estimate, near_end, xtol=1e-12))


def _score(outcome: PairedOutcome, delta: float) -> float:
    """Score statistic of the hypothesis that the true difference is `delta` (Tango, eq. 6)."""
    n, b, c = outcome.n, outcome.won, outcome.lost
    gap = b - c - n * delta
    # q: restricted maximum-likelihood estimate of P(lost) under the hypothesis.
    B = -b - c + (2 * n - b + c) * delta
    C = -c * delta * (1 - delta)
    q = (math.sqrt(max(B * B - 8 * n * C, 0.0)) - B) / (4 * n)
    variance = n * (2 * q + delta * (1 - delta))
    if variance <= 0:
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def mcnemar(outcome: PairedOutcome) -> float:
    """Exact two-sided McNemar test: could wins and losses be equally likely?

    Example:
        >>> round(mcnemar(PairedOutcome(n=100, lost=15, won=5)), 4)
        0.0414
    """
    discordant = outcome.lost + outcome.won
    if discordant == 0:
        return 1.0
    return float(binomtest(min(outcome.lost, outcome.won), discordant, 0.5).pvalue)


def judge(bounds: Interval, margin: float) -> Verdict:
    """Non-inferiority: may the candidate be this much worse than the base, and no more?

    Args:
        bounds: one-sided bounds of the difference candidate minus base.
        margin: tolerated loss, not negative, in the unit of `bounds`.

    Raises:
        ValueError: negative margin.
    """
    if not margin >= 0:
        raise ValueError(f"margin is {margin}; give the tolerated loss as a number >= 0")
    if bounds.low > -margin:
        return Verdict.PASS
    return Verdict.FAIL if bounds.high < -margin else Verdict.INCONCLUSIVE


def overall(verdicts: Sequence[Verdict]) -> Verdict:
    """FAIL if any fails, PASS if all pass; nothing judged is INCONCLUSIVE."""
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    if verdicts and all(verdict is Verdict.PASS for verdict in verdicts):
        return Verdict.PASS
    return Verdict.INCONCLUSIVE


def mean_interval(
    values: Sequence[float] | NDArray[np.float64], *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Bootstrap interval (bias-corrected, accelerated) for the mean of independent values.

    Give differences candidate minus base, one per unit, for a paired interval. Values all equal
    give that value twice.

    Raises:
        ValueError: fewer than two values, one that is not finite, or values so far apart that
            their difference is not.
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size < 2 or not np.isfinite(sample).all():
        raise ValueError(f"{sample.size} values; an interval needs at least two, all finite")
    low = float(sample.min())
    spread = float(sample.max()) - low
    if not math.isfinite(spread):
        raise ValueError(f"values from {low:g} to {sample.max():g} are too far apart")
    if spread == 0:
        return Interval(low, low)
    mean: Callable[..., NDArray[np.float64]] = np.mean
    found = bootstrap(
        ((sample - low) / spread,),  # the acceleration cubes them; tiny values would underflow
        mean,
        confidence_level=level,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    ends = [low + spread * float(end) for end in (found.low, found.high)]
    if not all(map(math.isfinite, ends)):
        raise ValueError(f"no interval for {sample.size} values: their distribution is degenerate")
    return Interval(*ends)
