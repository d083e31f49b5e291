from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks.matching.boxes import clip, contains, distance_to_centre, iou
from vlpress.eval.tasks.matching.places import Box

SIZE = (100.0, 50.0)
EDGES = st.floats(-200, 200)
BOXES = st.tuples(EDGES, EDGES, EDGES, EDGES)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (0, 0, 10, 5), 0.5),
        ((0, 0, 10, 10), (10, 0, 20, 10), 0.0),
        ((0, 0, 10, 10), (5, 5, 15, 15), 25 / 175),
        ((5, 5, 5, 5), (5, 5, 5, 5), 0.0),
        ((0, 0, 1e-200, 1e-200), (0, 0, 1e-200, 1e-200), 0.0),
    ],
)
def test_known_overlaps(first: Box, second: Box, expected: float) -> None:
    assert iou(first, second) == pytest.approx(expected)


@given(BOXES, BOXES)
def test_overlap_is_a_symmetric_fraction(first: Box, second: Box) -> None:
    first, second = clip(first, SIZE), clip(second, SIZE)
    assert 0 <= iou(first, second) <= 1 + 1e-12
    assert iou(first, second) == iou(second, first)


@given(BOXES)
def test_clipped_boxes_are_ordered_and_within(box: Box) -> None:
    left, top, right, bottom = clip(box, SIZE)
    assert 0 <= left <= right <= SIZE[0]
    assert 0 <= top <= bottom <= SIZE[1]


def test_a_border_belongs_to_its_box() -> None:
    assert contains((1, 2, 3, 4), (1, 4))
    assert not contains((1, 2, 3, 4), (1, 4.01))


def test_distance_is_relative_to_the_diagonal() -> None:
    assert distance_to_centre((0, 0, 0, 0), (3, 4), (30, 40)) == pytest.approx(0.1)
    assert distance_to_centre((0, 0, 2, 2), (1, 1), (5, 5)) == 0
    assert math.isclose(distance_to_centre((0, 0, 0, 0), (6, 8), (6, 8)), 1)
    assert distance_to_centre((0, 0, 0, 0), (math.inf, 1e300), (6, 8)) == 1
