from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.stats.paired import Pair, judge_difference, paired_difference
from vlpress.eval.stats.sample_means import difference_variance, score_interval
from vlpress.eval.tasks.generated.samples import combine_samples
from vlpress.eval.tasks.task import TaskScore, Unit

Hits = list[list[bool]]
"""Of each question the samples that are right."""


def test_known_variances() -> None:
    # Squares sum to 0.5, sizes to 1; one whole difference is added to both.
    assert difference_variance([0.5, -0.5, 0, 0], 2) == pytest.approx(1.5 / 2)
    # Mean -0.25: 4 * 0.0625 is subtracted from both.
    assert difference_variance([-0.5, -0.5, 0, 0], 2) == pytest.approx(1.25 / 1.75)
    # (2 + 1) / (20 + 1) is below the floor of 5 samples.
    assert difference_variance([0.1, -0.1] * 100, 5) == pytest.approx(0.2)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1), st.integers(1, 20))
def test_whole_differences_are_those_of_single_answers(
    differences: list[float], samples: int
) -> None:
    assert difference_variance(differences, samples) == 1.0


@given(st.integers(1, 10).flatmap(lambda k: st.tuples(st.just(k), st.lists(
    st.integers(-k, k), min_size=1))))  # fmt: skip
def test_samples_give_at_most_their_number_of_information(drawn: tuple[int, list[int]]) -> None:
    samples, sums = drawn
    ratio = difference_variance([value / samples for value in sums], samples)
    assert 1 / samples <= ratio <= 1


def test_wilson_intervals() -> None:
    # Newcombe, Statistics in Medicine 17, 1998, table I: 81 of 263 and 0 of 20.
    interval = score_interval([1.0] * 81 + [0.0] * 182, range(263), samples=1)
    assert (interval.low, interval.high) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    interval = score_interval([0.0] * 20, range(20), samples=5)
    assert (interval.low, interval.high) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_means_narrow_an_interval_as_further_questions_do() -> None:
    # Half of the questions have mean 0.25 and half 0.75: a quarter of the variance of whole points.
    means = score_interval([0.25, 0.75] * 50, range(100), samples=10)
    whole = score_interval([0.0, 1.0] * 200, range(400), samples=1)
    assert (means.low, means.high) == pytest.approx((whole.low, whole.high))
    few = score_interval([0.25, 0.75] * 50, range(100), samples=2)
    assert few.low < means.low  # two samples are no more than twice the questions


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(1, 9))
def test_an_interval_contains_the_mean(values: list[float], samples: int) -> None:
    interval = score_interval(values, range(len(values)), samples=samples)
    assert 0 <= interval.low <= np.mean(values) + 1e-12
    assert np.mean(values) - 1e-12 <= interval.high <= 1


def pairs(base: Hits, candidate: Hits) -> list[Pair]:
    def combine(hits: Hits) -> tuple[Unit, ...]:
        samples = [
            TaskScore(
                "accuracy",
                tuple(
                    Unit(str(i), right[k], "c", "g", (str(i),), ("",))
                    for i, right in enumerate(hits)
                ),
                *(len(hits), 0, 0, 0, {}, {}),
            )
            for k in range(len(hits[0]))
        ]
        return combine_samples(samples).units

    return list(zip(combine(base), combine(candidate), strict=True))


def compared(drawn: list[Pair]) -> dict[str, Any]:
    names = range(len(drawn))
    return {**paired_difference(drawn, names), **judge_difference(drawn, names, 2.0)}


hits = st.integers(1, 5).flatmap(
    lambda k: st.lists(
        st.tuples(*(st.lists(st.booleans(), min_size=k, max_size=k),) * 2), min_size=1, max_size=12
    )
)


@given(hits, st.integers(0, 1000))
def test_the_order_of_samples_changes_no_interval(
    drawn: list[tuple[list[bool], list[bool]]], seed: int
) -> None:
    first = compared(pairs([b for b, _ in drawn], [c for _, c in drawn]))
    shuffle = random.Random(seed)
    # Each question and each model in an order of its own.
    sample = [tuple(shuffle.sample(side, len(side)) for side in each) for each in drawn]
    again = compared(pairs([b for b, _ in sample], [c for _, c in sample]))
    assert first == again


@given(hits, st.integers(2, 6))
def test_equal_samples_give_the_intervals_of_one(
    drawn: list[tuple[list[bool], list[bool]]], times: int
) -> None:
    single = [([b[0]], [c[0]]) for b, c in drawn]
    once = compared(pairs([b for b, _ in single], [c for _, c in single]))
    many = compared(pairs([b * times for b, _ in single], [c * times for _, c in single]))
    assert many.pop("ci_kind") == f"tango, means of {times} samples"
    assert once.pop("ci_kind") == "tango"
    assert once == many


def test_samples_narrow_the_paired_interval() -> None:
    rng = np.random.default_rng(3)
    shares = rng.uniform(0, 1, (200, 1))
    draw = [(rng.random((200, 10)) < shares).tolist() for _ in range(2)]
    ten = compared(pairs(*draw))
    one = compared(pairs(*[[row[:1] for row in side] for side in draw]))
    width = [entry["ci95"][1] - entry["ci95"][0] for entry in (one, ten)]
    assert width[1] < 0.45 * width[0]  # about 1 / sqrt(10) of it
    assert 0.1 <= ten["design_effect"] < 1 == one["design_effect"]


def test_parts_of_a_point_keep_their_conservative_interval() -> None:
    def unit(points: float) -> Unit:
        return Unit("u", points > 0, "c", "g", ("u",), ("",), points, (points > 0,) * 4)

    drawn = [(unit(0.75), unit(0.5)), (unit(0.5), unit(0.75))] * 5
    assert paired_difference(drawn, range(10))["design_effect"] == 1
