"""MMMU by the rules of its own authors, without their random guess.

Multiple choice: a letter in brackets, else a letter between spaces, else, in answers of more than
five words, an option's text; of several the one that stands last. Where nothing is found their
script draws a letter; here the answer is wrong, because a guess would blur a comparison of two
models. Open questions: short key phrases and the numbers in them are normalized and compared with
the gold answers. Yue et al., arXiv 2311.16502; repository MMMU-Benchmark/MMMU, mmmu/utils.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

_EDGES = (",", ".", "!", "?", ";", ":", "'")  # stripped one after the other, in this order
_CONTENT_WORDS = 5
_SENTENCE_END = re.compile(r"\.\s(?=[A-Z])|\n")
_CUES = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_LAST_CUE = "="  # in the last sentence an equation counts too
_EMPTY = frozenset(":,.!?;'")
_NUMBERS = tuple(
    map(
        re.compile,
        (
            r"-?\b\d{1,3}(?:,\d{3})+\b",  # with thousands separators
            r"-?\d+(?:\.\d+)?[eE][+-]?\d+",  # with an exponent
            r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",  # plain
        ),
    )
)

Normal = float | str


def official_choice(prediction: object, choices: Mapping[str, object]) -> str | None:
    """The option letter that an answer names; None where the original would guess.

    Args:
        prediction: the answer; anything but a string is taken by its `str()`.
        choices: option letter -> option text.
    """
    text = str(prediction)
    for edge in _EDGES:
        text = text.strip(edge)
    text = f" {text} "
    wanted: list[Callable[[str], str]] = [lambda c: f"({c})", lambda c: f" {c} "]
    for form in wanted:
        places = {letter: text.rfind(form(letter)) for letter in choices}
        if found := _last(places):
            return found
    if len(text.split()) > _CONTENT_WORDS:
        lowered = text.lower()
        return _last({letter: lowered.rfind(str(o).lower()) for letter, o in choices.items()})
    return None


def _last(places: Mapping[str, int]) -> str | None:
    """The letter found last; -1 is not found, ties go to the first letter."""
    best = max(places, key=lambda letter: places[letter], default=None)
    return best if best is not None and places[best] >= 0 else None


def official_open_hit(golds: Sequence[object], prediction: object) -> bool:
    """Whether an answer to an open question holds one of the gold answers.

    Args:
        golds: accepted answers.
        prediction: the answer.
    """
    wanted = [form for gold in golds for form in _normalize(str(gold))]
    texts = [form for form in wanted if isinstance(form, str)]
    for said in parse_open(str(prediction)):
        if isinstance(said, str):
            if any(text in said for text in texts):
                return True
        elif said in wanted:
            return True
    return False


def parse_open(prediction: str) -> set[Normal]:
    """Everything an answer may be taken to say: key phrases and numbers, normalized.

    Example:
        >>> sorted(parse_open("So the answer is 1/64."), key=str)
        [1.0, '1/64', 64.0]
    """
    phrases = _key_phrases(prediction)
    numbers = [n for phrase in phrases for pattern in _NUMBERS for n in pattern.findall(phrase)]
    return {form for text in (*phrases, *numbers) for form in _normalize(text)}


def _key_phrases(prediction: str) -> list[str]:
    """Of each sentence the shortest text behind a cue; the whole answer if there is none."""
    whole = prediction.strip().strip(".").lower()
    # Lower case leaves no capital to end a sentence at, so in effect only lines are split.
    sentences = _SENTENCE_END.split(whole)
    found = []
    for place, sentence in enumerate(sentences):
        last = place == len(sentences) - 1
        tails = list(_tails(sentence, (*_CUES, _LAST_CUE) if last else _CUES))
        if tails and (shortest := _shortest(tails)) not in _EMPTY and shortest:
            found.append(shortest)
    return found or [whole]


def _tails(sentence: str, cues: Sequence[str]) -> Iterator[str]:
    for cue in cues:
        if cue in sentence:
            yield sentence.rpartition(cue)[2].strip()


def _shortest(tails: Sequence[str]) -> str:
    """The shortest; an empty one is replaced by what comes next, as in the original."""
    best = ""
    for tail in tails:
        if not best or len(tail) < len(best):
            best = tail
    return best


def _normalize(text: str) -> list[Normal]:
    """A number rounded to two decimals; other text lower-cased, a single letter with a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except (ValueError, OverflowError):
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]
