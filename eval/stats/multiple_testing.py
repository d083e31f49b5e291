"""Many tests at once, and what a number of questions can show at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeVar

from scipy.stats import norm  # type: ignore[import-untyped]  # scipy has no annotations

from .statistics import PairedOutcome

Name = TypeVar("Name")

FEW = 30  # units in a category below which its difference says next to nothing


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """p-values adjusted so that one false alarm among all is as rare as each alone claims.

    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of
    Statistics 6, 1979. For the few headline tests of a report.
    """
    return _adjusted(p_values, "holm")


def benjamini_hochberg(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """p-values adjusted for the share of false alarms among all alarms.

    Benjamini and Hochberg, Journal of the Royal Statistical Society B 57, 1995. For the many
    categories of a report.
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
    """The smallest true difference that such a comparison would probably notice.

    Normal approximation with as many discordant units as were seen, at least one (Miller, "Adding
    Error Bars to Evals", arXiv 2411.00640, section 5).

    Args:
        outcome: the counts; only `n` and how many units differ matter.
        power: chance to notice it.
        level: of the two-sided test.
        design_effect: see `clusters`.

    Returns:
        A fraction of the units.
    """
    discordant = max(outcome.lost + outcome.won, 1) / outcome.n
    z = float(norm.ppf(0.5 + level / 2) + norm.ppf(power))
    return z * math.sqrt(discordant * design_effect / outcome.n)
