"""Recognition of texts that repeat themselves until they end.

A model that is caught in a loop writes the same piece of text again and again, usually until its
answer is cut off. The rule is about the end of a text only, and about literal repetition: a loop in
which a number counts up is not found.
"""

from __future__ import annotations

REPEATS = 4
"""Least number of times that the piece must follow itself."""
LEAST = 64
"""Least number of characters that all repetitions together must have: short answers, such as
`0000` or `ha ha ha ha`, do not count."""
LONGEST = 1024
"""Longest piece, in characters."""
RULE = (
    f"the text ends in the same piece of at most {LONGEST} characters, {REPEATS} or more times in "
    f"a row over at least {LEAST} characters"
)


_TAIL = LEAST // REPEATS
"""Characters at the end that recur in every repetition: a run of at least `REPEATS` pieces and
`LEAST` characters is longer than one piece and these."""


def repeats_itself(text: str) -> bool:
    """Whether a text ends in repetitions of a piece, see `RULE`; white space at its end is ignored.

    The last repetition may be incomplete: the piece is the period of the end of the text. Takes
    time in proportion to the length of the text, at most that of `REPEATS` pieces.

    Example:
        >>> repeats_itself("It is red. " + "Wait, is it blue? " * 4)
        True
    """
    end = text.rstrip()[-REPEATS * LONGEST :][::-1]
    # The last characters recur one piece before. Almost all texts are told apart by this search.
    if len(end) < LEAST or end.find(end[:_TAIL], 1, LONGEST + _TAIL) < 0:
        return False
    matches = match_lengths(end)
    return any(
        period + matches[period] >= max(LEAST, REPEATS * period)
        for period in range(1, min(LONGEST, len(end) - 1) + 1)
    )


def match_lengths(text: str) -> list[int]:
    """Return for every position how many characters from there on equal the beginning of the text.

    The Z function (Gusfield, "Algorithms on Strings, Trees and Sequences", 1997, section 1.3), in
    linear time.
    """
    lengths = [len(text)] * min(1, len(text)) + [0] * (len(text) - 1)
    left = right = 0  # the matching stretch that reaches farthest
    for position in range(1, len(text)):
        length = min(right - position, lengths[position - left]) if position < right else 0
        while position + length < len(text) and text[length] == text[position + length]:
            length += 1
        lengths[position] = length
        if position + length > right:
            left, right = position, position + length
    return lengths
