"""Paired comparison of two models: intervals, tests and the verdict.

Differences are candidate minus base. For right/wrong answers the interval is Tango's score
interval for the difference of paired proportions (Tango, "Equivalence test and confidence
interval for the difference in proportions for the paired-sample design", Statistics in Medicine
17, 1998). Unlike the normal approximation it keeps its coverage when few answers
differ, and it does not collapse to a point when none do. Dependent units (`clusters`) widen it.
Answers with a part of a point enter it as fractional counts: of all distributions of differences in
[-1, 1] with the same mean gain and mean loss, whole points have the largest variance, so the
interval is conservative. The verdict is a test of non-inferiority.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri  # type: ignore[import-untyped]  # scipy has no annotations

from .verdict import Verdict

CI_KIND = "tango"
RESAMPLES = 9999
_BATCH = 256  # resamples drawn at once: bounds the memory of a bootstrap over thousands of items


@dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class PairedOutcome:
    """Right/wrong counts of two models on the same `n` units, or points that differ."""

    n: int
    lost: float  # base right, candidate wrong; or the sum of the points that the candidate lost
    won: float  # base wrong, candidate right; or the sum of the points that it gained
    moved: tuple[int, int] | None = None
    """Numbers of units with a lower and with a higher value; None: the counts."""

    def __post_init__(self) -> None:
        """Refuse impossible counts."""
        if self.n < 1 or self.lost < 0 or self.won < 0 or self.lost + self.won > self.n:
            raise ValueError(
                f"{self.lost} lost and {self.won} won of {self.n} units is impossible; "
                "counts are not negative and sum to at most n >= 1"
            )

    @property
    def delta(self) -> float:
        """Difference of proportions or means, candidate minus base, in [-1, 1]."""
        return (self.won - self.lost) / self.n


def count_outcomes(base: Sequence[float], candidate: Sequence[float]) -> PairedOutcome:
    """Count the units on which only one of the models is right, or sum the differing points.

    Args:
        base: value of each unit in [0, 1], or whether it is right.
        candidate: the same for the other model.

    Raises:
        ValueError: different or zero lengths.
    """
    if len(base) != len(candidate) or not base:
        raise ValueError(
            f"{len(base)} base and {len(candidate)} candidate units; both need the same, "
            "at least one"
        )
    gains = [c - b for b, c in zip(base, candidate, strict=True)]
    lost, won = sum(-g for g in gains if g < 0), sum(g for g in gains if g > 0)
    moved = sum(g < 0 for g in gains), sum(g > 0 for g in gains)
    if (lost, won) == moved:
        return PairedOutcome(len(gains), *moved)
    return PairedOutcome(len(gains), lost, won, moved)


def paired_interval(
    outcome: PairedOutcome, level: float = 0.95, *, design_effect: float = 1.0
) -> Interval:
    """Tango's two-sided score interval for the difference of paired proportions.

    Args:
        outcome: counts of lost and won units.
        level: coverage, in (0, 1).
        design_effect: see `clusters.design_effect`, above 0. It divides the sample size, which
            is the same as multiplying the critical value by its square root.

    Returns:
        Bounds in [-1, 1] that contain `outcome.delta`.
    """
    z = float(ndtri(0.5 + level / 2)) * math.sqrt(design_effect)
    return Interval(_score_bound(outcome, z, -1), _score_bound(outcome, z, +1))


def one_sided_bounds(
    outcome: PairedOutcome, level: float = 0.95, *, design_effect: float = 1.0
) -> Interval:
    """One-sided score bounds in [-1, 1]: a lower and an upper one, at confidence `level` each.

    Together they are a two-sided interval of coverage `2 * level - 1`.
    """
    return paired_interval(outcome, 2 * level - 1, design_effect=design_effect)


def bounds_in_points(outcome: PairedOutcome, *, design_effect: float = 1.0) -> Interval:
    """The one-sided 95 % bounds that decide a verdict, in points, in [-100, 100]."""
    bounds = one_sided_bounds(outcome, design_effect=design_effect)
    return Interval(100 * bounds.low, 100 * bounds.high)


def _score_bound(outcome: PairedOutcome, z: float, side: int) -> float:
    """The difference below (`side` -1) or above (+1) the estimate whose score statistic is ±z."""
    estimate, end = outcome.delta, float(side)

    def excess(delta: float) -> float:
        return abs(score_statistic(outcome, delta)) - z

    if estimate == end:
        return end
    # The statistic is 0 at the estimate and diverges towards the end of the range, where its
    # variance vanishes; without a root before that, the bound is the end itself.
    near_end = math.nextafter(end, estimate)
    if excess(near_end) <= 0:
        return end
    from scipy.optimize import brentq  # type: ignore[import-untyped]  # a tenth of a second

    return float(brentq(excess, estimate, near_end, xtol=1e-12))


def score_statistic(outcome: PairedOutcome, delta: float) -> float:
    """Score statistic of the hypothesis that the true difference is `delta` (Tango 1998, eq. 6).

    Args:
        outcome: counts.
        delta: a difference of proportions, in (-1, 1).

    Returns:
        About standard normal under the hypothesis; proportional to the square root of `outcome.n`
        at fixed shares of lost and won units.
    """
    n, b, c = outcome.n, outcome.won, outcome.lost
    gap = b - c - n * delta
    # q: restricted maximum-likelihood estimate of P(lost) under the hypothesis, the larger root of
    # 2 n q^2 + B q + C = 0.
    B = -b - c + (2 * n - b + c) * delta
    C = -c * delta * (1 - delta)
    q = (math.sqrt(max(B * B - 8 * n * C, 0.0)) - B) / (4 * n)
    variance = n * (2 * q + delta * (1 - delta))
    if variance <= 0:
        return 0.0 if gap == 0 else math.copysign(math.inf, gap)
    return gap / math.sqrt(variance)


def mcnemar(outcome: PairedOutcome) -> float:
    """Exact two-sided McNemar test of equal probabilities of `lost` and `won`.

    McNemar, "Note on the sampling error of the difference between correlated proportions or
    percentages", Psychometrika 12, 1947; here a binomial test of the discordant units, which is
    the sign test for units with a part of a point.

    Returns:
        The p-value, in (0, 1]; 1 without discordant units.

    Example:
        >>> round(mcnemar(PairedOutcome(n=100, lost=15, won=5)), 4)
        0.0414
    """
    lower, higher = outcome.moved or (int(outcome.lost), int(outcome.won))
    if lower + higher == 0:
        return 1.0
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # half a second

    return float(binomtest(min(lower, higher), lower + higher, 0.5).pvalue)


def judge(bounds: Interval, margin: float) -> Verdict:
    """Test for non-inferiority: PASS if the loss is shown to be less than the margin.

    Args:
        bounds: one-sided bounds of the difference candidate minus base.
        margin: allowed loss, not negative, in the unit of `bounds`.

    Returns:
        PASS if the lower bound is above `-margin`, FAIL if the upper bound is below it, else
        INCONCLUSIVE.

    Raises:
        ValueError: negative margin.
    """
    if not margin >= 0:
        raise ValueError(f"margin is {margin}; give the allowed loss as a number >= 0")
    if bounds.low > -margin:
        return Verdict.PASS
    return Verdict.FAIL if bounds.high < -margin else Verdict.INCONCLUSIVE


def combine_verdicts(verdicts: Sequence[Verdict]) -> Verdict:
    """Combine verdicts: FAIL if any is, PASS if all are; INCONCLUSIVE otherwise, or without any."""
    if Verdict.FAIL in verdicts:
        return Verdict.FAIL
    if verdicts and all(verdict is Verdict.PASS for verdict in verdicts):
        return Verdict.PASS
    return Verdict.INCONCLUSIVE


def mean_interval(
    values: Sequence[float] | NDArray[np.float64], *, level: float = 0.95, seed: int = 0
) -> Interval:
    """Bootstrap interval for the mean of independent values.

    BCa (bias-corrected and accelerated): Efron, "Better bootstrap confidence intervals", Journal of
    the American Statistical Association 82, 1987, with `RESAMPLES` resamples. Differences candidate
    minus base, one per unit, give a paired interval.

    Args:
        values: at least two finite values.
        level: coverage, in (0, 1).
        seed: seed of the resampling; the result is deterministic.

    Returns:
        Bounds within the range of the values; equal bounds for equal values.

    Raises:
        ValueError: fewer than two values, one is not finite, or their range exceeds float64.
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
    from scipy.stats import bootstrap  # half a second

    mean: Callable[..., NDArray[np.float64]] = np.mean
    bounds = bootstrap(
        ((sample - low) / spread,),  # the acceleration cubes them; tiny values would underflow
        mean,
        confidence_level=level,
        n_resamples=RESAMPLES,
        batch=_BATCH,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    ends = [low + spread * float(end) for end in (bounds.low, bounds.high)]
    if not all(map(math.isfinite, ends)):
        raise ValueError(f"no interval for {sample.size} values: their distribution is degenerate")
    return Interval(*ends)
