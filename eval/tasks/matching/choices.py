"""Options of custom questions and the option that their answer denotes.

Options are a list or an object of letter and text. If all of them begin with their letter
(`["A. left", "B. right"]`), it is removed, because the prompt adds it; a null or blank option does
not exist, as in VLMEvalKit's tables. An answer is a letter or the text of one option.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping

Value = str | int | float
Options = dict[str, Value]
"""Letter -> text or number."""

_LABEL = re.compile(r"\s*\(?([A-Za-z])(?:[.):]\s+|\)|[\u3001\uff0e\uff1a]\s*)(?=\S)")
_LETTER = re.compile(r"\s*\(?([A-Za-z])[.):]?\)?\s*")


def fold(text: str) -> str:
    """Normalize text: fold case, strip and collapse blanks, remove a final full stop."""
    folded = " ".join(text.casefold().split())
    return folded.removesuffix(".").rstrip() or folded


def read_options(value: object) -> Options:
    """Parse options into letter -> text, in letter order; empty for None.

    Raises:
        ValueError: the value is not a list or object of texts and numbers, or has more than 26.
    """
    if value is None:
        return {}
    if isinstance(value, list):
        if len(value) > len(string.ascii_uppercase):
            raise ValueError(f"choices are {len(value)}; at most {len(string.ascii_uppercase)}")
        value = dict(zip(string.ascii_uppercase, value, strict=False))
    if not isinstance(value, dict):
        raise ValueError("choices must be a list of texts or an object of letter and text")
    options: Options = {}
    for key, text in value.items():
        letter = str(key).upper()
        if letter not in string.ascii_uppercase or len(letter) != 1 or letter in options:
            raise ValueError(f"choices: {key!r} is no letter of its own; use A to Z once each")
        if text is None or (isinstance(text, str) and not text.strip()):
            continue
        if isinstance(text, bool) or not isinstance(text, str | int | float):
            raise ValueError(f"choices: {letter} is a {type(text).__name__}; write a text")
        options[letter] = text
    if not options:
        raise ValueError("choices hold no text; leave them out or give at least one")
    return _strip_labels(dict(sorted(options.items())))


def _strip_labels(options: Options) -> Options:
    """Remove the leading letters if there are several options and each begins with its letter."""
    labels = {letter: _LABEL.match(str(text)) for letter, text in options.items()}
    if len(options) < 2 or not all(m and m[1].upper() == key for key, m in labels.items()):
        return options
    return {key: str(options[key])[m.end() :] for key, m in labels.items() if m}


def find_letter(answer: Value, options: Mapping[str, Value]) -> str:
    """Return the letter of the option that an answer denotes.

    A capital letter is always a letter, never the text of an option. A number denotes the option
    with this number; among texts it could also be an index, from 0 or 1, and is refused.

    Raises:
        ValueError: the answer denotes no option, or is ambiguous.
    """
    if isinstance(answer, str) and answer in options:
        return answer
    matches = [letter for letter, text in options.items() if _denotes(answer, letter, text)]
    if len(matches) == 1:
        return matches[0]
    letters = ", ".join(options)
    if matches:
        raise ValueError(f"answer {answer!r} may be {' or '.join(matches)}; write the letter")
    raise ValueError(f"answer {answer!r} is none of the choices; write a letter of {letters}")


def _denotes(answer: Value, letter: str, text: Value) -> bool:
    """Whether an answer is the letter, the labelled text or the text of an option."""
    if not isinstance(answer, str):
        return not isinstance(text, str) and answer == text
    bare, label = _LETTER.fullmatch(answer), _LABEL.match(answer)
    if bare and bare[1].upper() == letter:
        return True
    if label and label[1].upper() == letter and fold(answer[label.end() :]) == fold(str(text)):
        return True
    return fold(answer) == fold(str(text))
