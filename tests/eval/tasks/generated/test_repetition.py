from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.tasks.generated.repetition import (
    LEAST,
    LONGEST,
    REPEATS,
    match_lengths,
    repeats_itself,
)

LOOP = "Wait, is it blue? "


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", False),
        ("B", False),
        ("ha " * 20, False),  # 59 characters
        ("ha " * 22, True),
        ("It is red. " + LOOP * 3, False),
        ("It is red. " + LOOP * 4, True),
        ("It is red. " + LOOP * 4 + "Wait, is", True),  # cut off within the piece
        ("It is red. " + LOOP * 4 + " \n\n ", True),
        (LOOP * 4 + "It is red.", False),  # goes on to an end
        ("红色的。" * 16, True),
        ("".join(f"Step {n}: look. " for n in range(40)), False),
        ("x" * LONGEST + "y", False),
    ],
)
def test_known_texts(text: str, expected: bool) -> None:
    assert repeats_itself(text) is expected


def test_longest_piece() -> None:
    def piece(length: int) -> str:
        return "".join(chr(0x4E00 + n) for n in range(length))

    assert repeats_itself("a" + piece(LONGEST) * REPEATS)
    assert not repeats_itself(piece(LONGEST + 1) * REPEATS)


@given(st.text("ab", max_size=30))
def test_match_lengths_by_their_definition(text: str) -> None:
    def matching(position: int) -> int:
        rest = text[position:]
        return next((n for n in range(len(rest)) if rest[n] != text[n]), len(rest))

    assert match_lengths(text) == [matching(position) for position in range(len(text))]


@given(st.text("ab", max_size=90), st.text("abc", min_size=1, max_size=20), st.integers(1, 8))
def test_repetition_by_its_definition(start: str, piece: str, count: int) -> None:
    text = start + piece * count
    periods = range(1, len(text) // REPEATS + 1)

    def run(period: int) -> int:
        """Length of the end of the text in which each character equals that one period before."""
        length = period
        while length < len(text) and text[-length - 1] == text[-length - 1 + period]:
            length += 1
        return length

    expected = any(run(period) >= max(LEAST, REPEATS * period) for period in periods)
    assert repeats_itself(text) is expected
