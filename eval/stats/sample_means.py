"""Intervals of scores whose questions have several sampled answers.

The samples of a question are not independent, so the question is the unit: its value is the mean
over its samples, and an interval is clustered by question (Miller, "Adding Error Bars to Evals",
arXiv 2411.00640, section 2.2). Score intervals keep their coverage with few differences, but treat
a unit as right or wrong; a mean over samples varies less. They are therefore scaled by the variance
of the means relative to that of right and wrong units with the same total, as if there were more
units: at most as many as samples. If all samples of each question agree, this changes nothing.
`benchmarks/coverage_samples.py` simulates the coverage.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy.special import ndtri  # type: ignore[import-untyped]  # scipy has no annotations

from .clusters import design_effect
from .statistics import Interval


def difference_variance(differences: Sequence[float], samples: int) -> float:
    """Variance of differences of means, relative to that of differences of right and wrong units.

    One further unit with a difference of 1 is added to both: the variance of few small differences
    is otherwise estimated too small.

    Args:
        differences: candidate minus base of each unit, in [-1, 1].
        samples: sampled answers of each unit.

    Returns:
        A factor for the design effect, from 1 / samples to 1; 1 if all differences are whole.
    """
    values = np.asarray(differences, dtype=np.float64)
    square = values.size * float(values.mean()) ** 2
    means = float((values**2).sum()) - square
    whole = float(np.abs(values).sum()) - square
    return min(1.0, max((means + 1) / (whole + 1), 1 / samples))


def score_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    samples: int,
    level: float = 0.95,
) -> Interval:
    """Wilson's score interval for a mean of units, scaled by the variance of the units.

    Wilson, "Probable inference, the law of succession, and statistical inference", Journal of the
    American Statistical Association 22, 1927.

    Args:
        values: of each unit the mean over its samples, in [0, 1]; at least one.
        clusters: the cluster of each unit, see `clusters.design_effect`.
        samples: sampled answers of each unit.
        level: coverage, in (0, 1).

    Returns:
        Bounds in [0, 1] that contain the mean.

    Example:
        >>> interval = score_interval([1.0] * 8 + [0.0] * 2, range(10), samples=1)
        >>> round(interval.low, 3), round(interval.high, 3)
        (0.49, 0.943)
    """
    units = np.asarray(values, dtype=np.float64)
    mean = float(units.mean())
    whole = mean * (1 - mean)
    ratio = 1.0 if whole <= 0 else float(((units - mean) ** 2).mean()) / whole
    effect = design_effect(values, clusters) * min(1.0, max(ratio, 1 / samples))
    square = float(ndtri(0.5 + level / 2)) ** 2 * effect / len(values)
    center = (mean + square / 2) / (1 + square)
    half = math.sqrt(square * whole + square**2 / 4) / (1 + square)
    # Rounding may move an end past the mean where both are 0 or 1.
    return Interval(max(0.0, min(center - half, mean)), min(1.0, max(center + half, mean)))
