from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.stats.criterion import judge_share, threshold
from vlpress.eval.stats.verdict import Verdict


def test_thresholds_are_those_of_mlperf() -> None:
    # multimodal/qwen3-vl: F1 of at least 0.7824 and 0.7799 for means of 0.7903 and 0.7878.
    assert threshold(79.03) == pytest.approx(78.24, abs=0.005)
    assert threshold(78.78) == pytest.approx(77.99, abs=0.005)


@pytest.mark.parametrize(
    ("base", "candidate", "verdict"),
    [
        (100.0, 99.0, "PASS"),
        (100.0, 98.99, "FAIL"),
        (100 * 2 / 3, 0.99 * (200 / 3), "PASS"),
        (50.0, 60.0, "PASS"),
        (0.5, 0.0, "FAIL"),
    ],
)
def test_a_share_of_99_percent_decides(base: float, candidate: float, verdict: str) -> None:
    assert judge_share(base, candidate) == verdict


@given(st.floats(0, 100), st.floats(0, 100))
def test_there_is_always_a_decision(base: float, candidate: float) -> None:
    verdict = judge_share(base, candidate)
    assert verdict in (Verdict.PASS, Verdict.FAIL)
    assert verdict == Verdict.PASS or candidate < base
