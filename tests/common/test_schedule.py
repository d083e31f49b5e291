import pytest

from vlpress.common.schedule import PRIOR, Expected, Schedule


def schedule() -> Schedule:
    stages = [("quantize", 100, "q"), ("answer", 40, "e"), ("read", 60, "e")]
    return Schedule([Expected(*stage) for stage in stages])


def test_before_the_first_stage_all_estimates_count() -> None:
    assert schedule().seconds_left() == 200


def test_a_stage_that_is_slower_than_estimated_corrects_itself_and_its_group() -> None:
    shown = schedule()
    shown.record("quantize", share=0.5, worked=0.5, seconds=150)
    factor = (150 + 100 * PRIOR) / (50 + 100 * PRIOR)
    assert shown.seconds_left() == pytest.approx(50 * factor + 100)
    shown.record("answer", share=1.0, worked=1.0, seconds=80)
    assert shown.seconds_left() == pytest.approx(60 * (80 + 5) / (40 + 5))
    shown.record("read", share=0.5, worked=0.5, seconds=60)
    assert shown.seconds_left() == pytest.approx(30 * (140 + 5) / (70 + 5))
    shown.record("read", share=1.0, worked=1.0, seconds=120)
    assert shown.seconds_left() == 0


def test_resumed_stages_are_corrected_by_the_work_of_this_process() -> None:
    shown = schedule()
    shown.record("answer", share=0.75, worked=0.25, seconds=10)  # as estimated
    assert shown.seconds_left() == pytest.approx(10 + 60)


def test_unknown_stages_change_nothing() -> None:
    shown = schedule()
    shown.record("verify", share=0.5, worked=0.5, seconds=1000)
    assert shown.seconds_left() == 200
    assert Schedule([]).seconds_left() == 0
