from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks.matching.anls import anls, levenshtein

texts = st.text(alphabet="ab C", max_size=8)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("", "abc", 3),
        ("saturday", "sunday", 3),
        ("intention", "execution", 5),
        ("same", "same", 0),
    ],
)
def test_known_distances(first: str, second: str, distance: int) -> None:
    assert levenshtein(first, second) == levenshtein(second, first) == distance


@given(st.text("abc", max_size=12), st.text("abc", max_size=90))
def test_distance_is_that_of_the_table_of_prefixes(first: str, second: str) -> None:
    row = list(range(len(second) + 1))
    for count, character in enumerate(first, 1):
        above, row = row, [count]
        for column, other in enumerate(second):
            replaced = above[column] + (character != other)
            row.append(min(replaced, above[column + 1] + 1, row[column] + 1))
    assert levenshtein(first, second) == levenshtein(list(second), list(first)) == row[-1]


@given(texts, texts, texts)
def test_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert abs(len(a) - len(b)) <= levenshtein(a, b) <= max(len(a), len(b))
    assert (levenshtein(a, b) == 0) == (a == b)
    assert levenshtein(a, c) <= levenshtein(a, b) + levenshtein(b, c)


@pytest.mark.parametrize(
    ("answers", "prediction", "expected"),
    [
        (["12 May"], "12 may", 1.0),
        (["12 May", "May 12"], " May  12", 1.0),  # blanks do not count in the distance
        (["hello world"], "Hello word", 1 - 1 / 11),
        (["hello world"], "Hello    word", 1 - 1 / 13),  # but in the length
        (["abcd"], "abxy", 0.5),  # at the threshold: counts
        (["abc"], "axy", 0.0),  # below it
        (["1998"], "in the year 1998", 0.0),
        ([""], "", 1.0),
    ],
)
def test_known_similarities(answers: list[str], prediction: str, expected: float) -> None:
    assert anls(answers, prediction) == pytest.approx(expected, abs=1e-12)


@given(st.lists(texts, min_size=1, max_size=3), texts)
def test_similarity_is_zero_or_from_half_to_one(answers: list[str], prediction: str) -> None:
    value = anls(answers, prediction)
    assert value == 0 or 0.5 <= value <= 1
    assert anls([*answers, prediction], prediction) == 1
