"""The three verdicts, in a module of their own because scipy in `statistics` loads slowly."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """Result of a non-inferiority test of a candidate against its base."""

    PASS = "PASS"
    INCONCLUSIVE = "INCONCLUSIVE"
    FAIL = "FAIL"
