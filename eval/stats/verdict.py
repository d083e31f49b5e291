"""The three verdicts. Apart from `statistics`, which takes a second to import."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """Whether a candidate may replace the base."""

    PASS = "PASS"
    INCONCLUSIVE = "INCONCLUSIVE"
    FAIL = "FAIL"
