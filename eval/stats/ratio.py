"""Bootstrap interval for the ratio of two paired totals, such as tokens of two models' answers."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from .statistics import RESAMPLES, Interval

LEAST_CLUSTERS = 10
"""With fewer, a bootstrap has too few different resamples for its coverage."""
_BATCH = 256  # resamples drawn at once, see `statistics`

Values = NDArray[np.float64]


def ratio_interval(
    base: Sequence[float],
    candidate: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    level: float = 0.95,
    seed: int = 0,
) -> Interval | None:
    """Interval for total of candidate / total of base, with whole clusters resampled.

    BCa (Efron, "Better bootstrap confidence intervals", Journal of the American Statistical
    Association 82, 1987) with `statistics.RESAMPLES` resamples.

    Args:
        base: value of each unit, finite and not negative.
        candidate: the same for the other model.
        clusters: the cluster of each unit, see `clusters.design_effect`.
        level: coverage, in (0, 1).
        seed: seed of the resampling; the result is deterministic.

    Returns:
        Equal bounds if the ratio is the same in all clusters; None with fewer than
        `LEAST_CLUSTERS` clusters, or where too many base values are 0 for a ratio.

    Raises:
        ValueError: different numbers of values.
    """
    before, after = _sums(base, clusters), _sums(candidate, clusters)
    if before.size < LEAST_CLUSTERS or before.sum() <= 0:
        return None
    ratio = float(after.sum() / before.sum())
    if np.allclose(after, ratio * before, rtol=1e-12, atol=0):
        return Interval(ratio, ratio)
    from scipy.stats import bootstrap  # type: ignore[import-untyped]  # half a second

    with np.errstate(divide="ignore", invalid="ignore"):
        bounds = bootstrap(
            (before, after),
            _ratio,
            paired=True,
            vectorized=True,
            confidence_level=level,
            n_resamples=RESAMPLES,
            batch=_BATCH,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    ends = float(bounds.low), float(bounds.high)
    return Interval(*ends) if all(map(math.isfinite, ends)) else None


def _ratio(before: Values, after: Values, axis: int = -1) -> Values:
    ratio: Values = after.sum(axis=axis) / before.sum(axis=axis)
    return ratio


def _sums(values: Sequence[float], clusters: Sequence[Hashable]) -> Values:
    """Sum of the values of each cluster, in order of first appearance."""
    if len(values) != len(clusters):
        raise ValueError(f"{len(values)} values and {len(clusters)} clusters; both need the same")
    sums: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] = sums.get(cluster, 0.0) + value
    return np.array(list(sums.values()), dtype=np.float64)
