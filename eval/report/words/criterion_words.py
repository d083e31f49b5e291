"""The criterion of a verdict in words, see `stats.criterion`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...stats.criterion import MARGIN_CRITERION, MLPERF, MLPERF_RUNS, SHARE
from ..tables.formatting import points

SHARE_TEXT = f"{100 * SHARE:.0f} %"

Report = Mapping[str, Any]


@dataclass(frozen=True)
class CriterionWords:
    """Parts of sentences about one criterion."""

    short: str
    """Name with its value."""
    passed: str
    """What a benchmark that passes shows, after its name."""
    failed: str
    """What one that fails shows, before its name."""
    kept: str
    """All benchmarks pass."""
    by: str
    """Addition to a permission to ship."""
    none: str
    """None of several candidates passes, after their number."""
    some: str
    """Some of them pass, after their number."""
    candidate: str
    """What a candidate has to do on every benchmark."""
    method: str
    """How the verdict of a benchmark is found."""


def is_mlperf(report: Report) -> bool:
    """Whether a report's verdict was found by MLPerf's rule."""
    return bool(report.get("criterion", MARGIN_CRITERION) == MLPERF)


def criterion_words(report: Report) -> CriterionWords:
    """Return the words for the criterion of a report or a comparison.

    Args:
        report: at least `criterion` (absent: the margin) and `margin` of `report.json`.
    """
    if is_mlperf(report):
        return CriterionWords(
            short=f"criterion {MLPERF}",
            passed=f"its score is at least {SHARE_TEXT} of the base's",
            failed=f"Its score is below {SHARE_TEXT} of the base's",
            kept=f"The score is at least {SHARE_TEXT} of the base's",
            by=" by MLPerf's rule",
            none=f"reaches {SHARE_TEXT} of the base's score",
            some=f"reach {SHARE_TEXT} of the base's score",
            candidate=f"has to score at least {SHARE_TEXT} of the base's score",
            method=f"A benchmark passes if the candidate's score is at least {SHARE_TEXT} of the "
            "base's (criterion mlperf-99, the rule of MLPerf Inference 6.1), and fails if it is "
            "not; intervals and numbers of questions do not matter.",
        )
    margin = points(report["margin"])
    return CriterionWords(
        short=f"margin {margin}",
        passed=f"it is shown to lose less than the {margin} allowed",
        failed=f"It is shown to lose more than the {margin} allowed",
        kept="The loss stays within the margin",
        by="",
        none="is shown to stay within the margin",
        some="stay within the margin",
        candidate=f"may lose less than {margin}",
        method=f"A benchmark passes if it is shown, at 95 % confidence, that the candidate loses "
        f"less than {margin}.",
    )


def criterion_caveat(report: Report) -> str | None:
    """A sentence on the limits of MLPerf's rule; None for a margin.

    Args:
        report: content of `report.json`.
    """
    if not is_mlperf(report):
        return None
    samples = report["generation"]["evaluated"].get("samples")
    runs = "one greedy run" if samples is None else f"{samples} sampled answers to each question"
    few = samples is None or samples < MLPERF_RUNS
    mean = f" MLPerf's base is the mean of {MLPERF_RUNS} runs, this one is of {runs}."
    return (
        "MLPerf's rule compares two means without an interval: on few questions chance can decide "
        f"the verdict.{mean if few else ''}"
    )
