"""Known values of pairs, documents and spots; all task types are in `test_ocrbench_v2`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks.matching.ocrbench_v2.documents import document_score
from vlpress.eval.tasks.matching.ocrbench_v2.pairs import box_score, pairs_score, read_pairs
from vlpress.eval.tasks.matching.ocrbench_v2.spotting import Spot, read_spots, spotting_score
from vlpress.eval.tasks.matching.ocrbench_v2.texts import count_score, text_score

DOCUMENT = "# One\na\nb\n# Two\nc"


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ('{"total": "12", "date": "May"}', 1.0),
        ('{"total": "12"}', 0.5),
        ('{"total": "12", "date": "May", "tax": "1"}', 2 / 3),
        ("nothing", 0.0),
    ],
)
def test_share_of_right_pairs(prediction: str, expected: float) -> None:
    assert pairs_score([{"total": ["12", "12.0"], "date": ["may"]}], prediction) == expected


def test_pairs_are_read_in_any_text() -> None:
    assert read_pairs("Total: 12\nname = 'A'") == {"Total": "12", "name": "A"}
    assert read_pairs("[1, 2]") == {}


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        (DOCUMENT, 1.0),
        (DOCUMENT.replace("c", "another text"), 1.0),  # lines are compared by structure only
        (DOCUMENT.replace("\nc", ""), 1 - 1 / 7),
    ],
)
def test_documents_are_compared_by_structure(prediction: str, expected: float) -> None:
    assert document_score([DOCUMENT], prediction) == pytest.approx(expected)


def test_spots_need_box_and_text() -> None:
    boxes, texts = [[0, 0, 10, 10], [20, 20, 30, 30]], ["Hi!", "there"]
    assert spotting_score(boxes, texts, "[[0,0,10,10,'hi'], [20,20,30,30,'THERE']]") == 1.0
    assert spotting_score(boxes, texts, "[0,0,10,10,hi] [20,20,25,30,there]") == 0.5
    assert read_spots("(1, 2, 3, 4, 'a, b')") == []  # a literal that is no list of spots
    assert read_spots("at (1, 2, 3, 4, a, b)") == [Spot((1, 2, 3, 4), "a, b")]


def test_the_last_box_counts() -> None:
    assert box_score([0, 0, 10, 10], "[5, 5, 9, 9], then [0, 0, 10, 5]") == 0.5
    with pytest.raises(ValueError, match="not four coordinates"):
        box_score([0, 0, 10], "[0, 0, 10, 5]")


@given(st.integers(1, 500), st.integers(0, 1000))
def test_counts_lose_their_relative_deviation(gold: int, number: int) -> None:
    score = count_score([gold], f"about {number} words")
    closeness = 1 - abs(number - gold) / gold
    assert score == (closeness if closeness > 0.5 and number else 0.0)


@given(st.text(min_size=1))
def test_an_answer_is_right_as_it_is(text: str) -> None:
    assert text_score([text], text) == 1.0
