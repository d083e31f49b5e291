"""Multiple-testing correction, and the power of a paired comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri  # type: ignore[import-untyped]  # scipy has no annotations

from .statistics import PairedOutcome

Name = TypeVar("Name")

FEW = 30  # categories with fewer units are marked: their difference is hardly informative


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Adjust p-values in [0, 1] to control the family-wise error rate.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6, 1979. For the few tests over whole benchmarks.
    """
    names, ordered = _ordered(p_values)
    steps = ordered * np.arange(len(names), 0, -1)
    return _named(names, np.maximum.accumulate(steps))


def benjamini_hochberg(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Adjust p-values in [0, 1] to control the false discovery rate.

    Benjamini and Hochberg, "Controlling the false discovery rate: a practical and powerful
    approach to multiple testing", Journal of the Royal Statistical Society B 57, 1995, section 3.
    For the many categories of a report.
    """
    names, ordered = _ordered(p_values)
    steps = ordered / (np.arange(1, len(names) + 1) / len(names))
    return _named(names, np.minimum.accumulate(steps[::-1])[::-1])


def _ordered(p_values: Mapping[Name, float]) -> tuple[list[Name], NDArray[np.float64]]:
    """Names and p-values in ascending order of the p-values."""
    names = sorted(p_values, key=lambda name: p_values[name])
    return names, np.array([p_values[name] for name in names], dtype=np.float64)


def _named(names: list[Name], adjusted: NDArray[np.float64]) -> dict[Name, float]:
    return dict(zip(names, np.minimum(adjusted, 1.0).tolist(), strict=True))


def detectable_difference(
    outcome: PairedOutcome, *, power: float = 0.8, level: float = 0.95, design_effect: float = 1.0
) -> float:
    """The smallest true difference that a comparison of this size detects with a given power.

    Normal approximation with the observed number of discordant units, at least one (Miller,
    "Adding Error Bars to Evals", arXiv 2411.00640, section 5).

    Args:
        outcome: counts, of which only `n` and `lost + won` matter.
        power: probability of detection, in (0, 1).
        level: confidence level of the two-sided test, in (0, 1).
        design_effect: see `clusters.design_effect`, above 0.

    Returns:
        A difference of proportions, above 0.
    """
    discordant = max(outcome.lost + outcome.won, 1) / outcome.n
    z = float(ndtri(0.5 + level / 2) + ndtri(power))
    return z * math.sqrt(discordant * design_effect / outcome.n)
