"""Short answers: texts, letters, numbers and formulas."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from ..anls import levenshtein

_ANLS = 0.5  # smallest similarity that counts
_LONG, _LONG_CHINESE = 5, 4  # words, or parts between commas, from which similarity counts
_SEPARATORS = ("", ".", ". ", ",", ", ", "、", ";", "; ", " ", "和")
_NUMBER = re.compile(r"\d+")
_DIGITS = 18  # of a number; longer ones are no counts
_TEXT_TAG = re.compile(r"\\text\{([^{}]*)\}")


def text_score(answers: Sequence[object], prediction: str) -> float:
    """Score by containment up to case; answers of five words or more by their similarity."""
    return _best(answers, prediction, lambda t: _line(t).lower(), lambda t: len(t.split()) >= _LONG)


def case_sensitive_score(answers: Sequence[object], prediction: str) -> float:
    """Score as `text_score` does, with case."""
    return _best(answers, prediction, _line, lambda t: len(t.split()) >= _LONG)


def chinese_score(answers: Sequence[object], prediction: str) -> float:
    """Score by containment without spaces; answers with three commas or more by similarity."""
    return _best(
        answers,
        prediction,
        lambda t: _line(t).lower().replace(" ", ""),
        lambda t: len(t.split(",")) >= _LONG_CHINESE,
    )


def _best(
    answers: Sequence[object],
    prediction: str,
    fold: Callable[[str], str],
    is_long: Callable[[str], bool],
) -> float:
    text = fold(prediction)
    golds = [fold(str(answer)) for answer in answers]
    return max(_similarity(g, text) if is_long(g) else float(g in text) for g in golds)


def _line(text: str) -> str:
    return text.strip().replace("\n", " ")


def _similarity(gold: str, text: str) -> float:
    similarity = 1 - levenshtein(text, gold) / max(len(text), len(gold))
    return similarity if similarity >= _ANLS else 0.0


def letter_score(answers: Sequence[object], prediction: str) -> float:
    """Whether the letters of a prediction, without all other characters, are the answer."""
    letters = "".join(character for character in prediction if character.isalpha())
    return float(letters == str(answers[0]))


def formula_score(answers: Sequence[object], prediction: str) -> float:
    """Whether a formula is contained in the prediction, without spaces and with case."""
    text = _without_spaces(prediction)
    return float(any(_without_spaces(str(answer)) in text for answer in answers))


def chinese_formula_score(answers: Sequence[object], prediction: str) -> float:
    r"""Score as `formula_score` does, with the content of `\text{}` in place of it."""
    text = _TEXT_TAG.sub(r"\1", prediction)
    return formula_score([_TEXT_TAG.sub(r"\1", str(answer)) for answer in answers], text)


def _without_spaces(text: str) -> str:
    return _line(text).replace(" ", "")


def count_score(answers: Sequence[object], prediction: str) -> float:
    """Score the first number of a prediction: 1 - relative deviation, if that is above 0.5."""
    match = _NUMBER.search(_line(prediction))
    number = int(match[0]) if match and len(match[0]) <= _DIGITS else 0
    scores = []
    for gold in (int(str(answer).strip()) for answer in answers):
        closeness = 1 - abs(number - gold) / gold if 0 < number < 2 * gold else 0.0
        scores.append(closeness if closeness > 0.5 else 0.0)
    return max(scores)


def exact_count_score(answers: Sequence[object], prediction: str) -> float:
    """Whether an answer in lower case is contained in the prediction as written."""
    return float(any(_line(str(answer).lower()) in prediction for answer in answers))


def choices_score(answers: Sequence[object], prediction: str) -> float:
    """Whether the letters of the answer occur in the prediction, joined in one of several ways."""
    letters = str(answers[0])
    return float(any(separator.join(letters) in prediction for separator in _SEPARATORS))
