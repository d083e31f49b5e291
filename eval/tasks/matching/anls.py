"""Average normalized Levenshtein similarity (ANLS) of one question.

Biten et al., "Scene Text Visual Question Answering", ICCV 2019, section 5, with the threshold 0.5.
The details are those of the evaluation script of the DocVQA challenge and of VLMEvalKit: case and
repeated blanks are ignored, the distance is divided by the length of the longer text before that,
and a similarity of exactly 0.5 counts, which is 0 in the paper.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

THRESHOLD = 0.5  # smallest similarity that counts


def anls(answers: Sequence[str], prediction: str) -> float:
    """Similarity of a prediction to the closest accepted answer (ANLS of one question).

    Args:
        answers: accepted answers, at least one.
        prediction: the model's answer.

    Returns:
        0, or a value in [`THRESHOLD`, 1].

    Example:
        >>> anls(["hello world"], "Hello  word"), anls(["1998"], "2007")
        (0.9090909090909091, 0.0)
    """
    similarity = 1 - min(_distance_share(answer, prediction) for answer in answers)
    return similarity if similarity >= THRESHOLD else 0.0


def _distance_share(answer: str, prediction: str) -> float:
    """Levenshtein distance of the normalized texts, over the length of the longer original."""
    length = max(len(answer.upper()), len(prediction.upper()))
    return levenshtein(normalize(answer), normalize(prediction)) / length if length else 0.0


def normalize(text: str) -> str:
    """Return the text in lower case with single blanks, as it is compared."""
    return " ".join(text.lower().split())


def levenshtein(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Smallest number of insertions, deletions and replacements that turn one text into another.

    Columns of the table of Wagner and Fischer are kept as bits of differences: Myers, "A fast
    bit-vector algorithm for approximate string matching based on dynamic programming", Journal of
    the ACM 46, 1999, in the form of Hyyrö, "A bit-vector algorithm for computing Levenshtein and
    Damerau edit distances", Nordic Journal of Computing 10, 2003.

    Args:
        first: characters or other values that can be hashed.
        second: the same.
    """
    if not first or not second:
        return len(first) + len(second)
    ones = (1 << len(first)) - 1
    places: dict[Hashable, int] = {}  # value -> bits of its places in `first`
    for place, value in enumerate(first):
        places[value] = places.get(value, 0) | 1 << place
    up, down, distance = ones, 0, len(first)  # positive and negative vertical differences
    last = 1 << (len(first) - 1)
    for value in second:
        match = places.get(value, 0)
        diagonal = ((((match & up) + up) ^ up) | match | down) & ones
        rising = down | (ones & ~(diagonal | up))
        falling = up & diagonal
        distance += bool(rising & last) - bool(falling & last)
        rising = (rising << 1 | 1) & ones
        falling = falling << 1 & ones
        up = falling | (ones & ~(diagonal | rising))
        down = rising & diagonal
    return distance
