"""Average normalized Levenshtein similarity (ANLS) of one question.

Biten et al., "Scene Text Visual Question Answering", ICCV 2019, section 5, with the threshold 0.5.
The details are those of the evaluation script of the DocVQA challenge and of VLMEvalKit: case and
repeated blanks are ignored, the distance is divided by the length of the longer text before that,
and a similarity of exactly 0.5 counts, which is 0 in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def levenshtein(first: str, second: str) -> int:
    """Smallest number of insertions, deletions and replacements that turn one text into another.

    Wagner and Fischer, "The String-to-String Correction Problem", Journal of the ACM 21, 1974.
    """
    row = list(range(len(second) + 1))  # distances of a prefix of `first` to all of `second`
    for count, character in enumerate(first, 1):
        diagonal, row[0] = row[0], count
        for column, other in enumerate(second, 1):
            replaced = diagonal + (character != other)
            diagonal = row[column]
            row[column] = min(replaced, row[column] + 1, row[column - 1] + 1)
    return row[-1]
