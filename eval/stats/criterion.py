"""Criteria of a verdict: non-inferiority within a margin, or MLPerf's share of the base's score.

MLPerf Inference 6.1 accepts a submission of Qwen3-VL-235B-A22B if its score is at least 99 % of the
reference's, which is the mean of 10 runs at temperature 1 (mlcommons/inference,
multimodal/qwen3-vl/README: 0.7824 of 0.7903). It compares two means and takes no account of the
number of questions.
"""

from __future__ import annotations

from typing import Literal

from .verdict import Verdict

Criterion = Literal["margin", "mlperf-99"]
MARGIN_CRITERION: Criterion = "margin"
MLPERF: Criterion = "mlperf-99"
SHARE = 0.99
"""Of the base's score, that a candidate must reach by MLPerf's rule."""
MLPERF_RUNS = 10
"""Runs whose mean is the base's score in MLPerf."""
_ROUNDING = 1e-9  # points; scores are sums of floats


def threshold(base: float) -> float:
    """Return the smallest score that passes by MLPerf's rule.

    Args:
        base: score of the base, the mean over its samples, in percent.
    """
    return SHARE * base


def judge_share(base: float, candidate: float) -> Verdict:
    """Judge by MLPerf's rule: PASS or FAIL, never INCONCLUSIVE.

    Args:
        base: score of the base, the mean over its samples, in percent.
        candidate: score of the candidate, in percent.

    Example:
        >>> str(judge_share(79.03, 78.24)), str(judge_share(79.03, 78.23))
        ('PASS', 'FAIL')
    """
    is_reached = candidate >= threshold(base) - _ROUNDING
    return Verdict.PASS if is_reached else Verdict.FAIL
