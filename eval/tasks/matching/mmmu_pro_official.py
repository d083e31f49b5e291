"""MMMU-Pro by the rules of its authors, without their random guess.

Yue et al., "MMMU-Pro", arXiv 2409.02813; repository MMMU-Benchmark/MMMU, mmmu-pro/evaluate.py.
After the last "Answer:" a single letter counts; otherwise the rules are those of MMMU
(`mmmu_official`), except that a letter needs only a space or a full stop after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

_CUE = "Answer:"
_EDGES = (",", ".", "!", "?", ";", ":", "'")  # stripped in this order
_CONTENT_WORDS = 5


def official_pro_choice(prediction: str, choices: Mapping[str, object]) -> str | None:
    """Extract the option letter that an answer names; None where the original would guess.

    Args:
        prediction: the answer.
        choices: option letter -> option text.

    Example:
        >>> options = {"A": "cat", "B": "dog", "C": "bird"}
        >>> official_pro_choice("A or B? Answer: B", options), official_pro_choice("b", options)
        ('B', None)
    """
    _, cue, tail = prediction.rpartition(_CUE)
    named = [letter for letter in choices if cue and letter in tail.strip()]
    if len(named) == 1:
        return named[0]
    text = prediction
    for edge in _EDGES:
        text = text.strip(edge)
    text = f" {text} "
    for written, located in _FORMS:
        if letters := [letter for letter in choices if written(letter) in text]:
            return _last(letters, [text.rfind(located(letter)) for letter in letters])
    if len(text.split()) > _CONTENT_WORDS:
        lowered = text.lower()
        contents = {letter: str(content).lower() for letter, content in choices.items()}
        letters = [letter for letter, content in contents.items() if content in lowered]
        return _last(letters, [lowered.rfind(contents[letter]) for letter in letters])
    return None


_Form = Callable[[str], str]
_FORMS: Sequence[tuple[_Form, _Form]] = (
    (lambda letter: f"({letter})", lambda letter: f"({letter})"),
    (lambda letter: f"{letter} ", lambda letter: f" {letter} "),
    (lambda letter: f"{letter}.", lambda letter: f" {letter} "),
)
"""The forms of a letter, and by which its place is found if there are several."""


def _last(letters: Sequence[str], offsets: Sequence[int]) -> str | None:
    """Return the letter with the largest offset, the first one of ties; None without letters."""
    return letters[offsets.index(max(offsets))] if letters else None
