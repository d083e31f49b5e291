"""Multiple-testing correction, and the power of a paired comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from scipy.stats import norm  # type: ignore[import-untyped]  # scipy has no annotations

from .statistics import PairedOutcome

Name = TypeVar("Name")

FEW = 30  # categories with fewer units are marked: their difference is hardly informative


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Adjust p-values in [0, 1] to control the family-wise error rate.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6, 1979. For the few tests over whole benchmarks.
    """
    return _adjusted(p_values, "holm")


def benjamini_hochberg(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Adjust p-values in [0, 1] to control the false discovery rate.

    Benjamini and Hochberg, "Controlling the false discovery rate: a practical and powerful
    approach to multiple testing", Journal of the Royal Statistical Society B 57, 1995, section 3.
    For the many categories of a report.
    """
    return _adjusted(p_values, "fdr_bh")


def _adjusted(p_values: Mapping[Name, float], method: str) -> dict[Name, float]:
    from statsmodels.stats.multitest import (  # type: ignore[import-untyped]  # slow to import
        multipletests,
    )

    if not p_values:
        return {}
    adjusted = multipletests(list(p_values.values()), method=method)[1]
    return dict(zip(p_values, map(float, adjusted), strict=True))


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
        design_effect: see `clusters.design_effect`, at least 1.

    Returns:
        A difference of proportions, above 0.
    """
    discordant = max(outcome.lost + outcome.won, 1) / outcome.n
    z = float(norm.ppf(0.5 + level / 2) + norm.ppf(power))
    return z * math.sqrt(discordant * design_effect / outcome.n)
