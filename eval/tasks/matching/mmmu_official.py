"""MMMU by the rules of its authors, without their random guess.

Multiple choice: a letter in brackets, else a letter between spaces, else, in answers of more than
five words, an option's text; the last one if there are several. If there is none, their script
draws a letter; here the answer is wrong, because a guess would add noise to a comparison of two
models. Open questions: short key phrases and the numbers in them are normalized and compared with
the gold answers. Yue et al., arXiv 2311.16502; repository MMMU-Benchmark/MMMU, mmmu/utils.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

_EDGES = (",", ".", "!", "?", ";", ":", "'")  # stripped in this order
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
    """Extract the option letter that an answer names; None where the original would guess.

    Args:
        prediction: the answer; converted by `str()` if it is not a string.
        choices: option letter -> option text.
    """
    text = str(prediction)
    for edge in _EDGES:
        text = text.strip(edge)
    text = f" {text} "
    forms: list[Callable[[str], str]] = [lambda c: f"({c})", lambda c: f" {c} "]
    for form in forms:
        if last := _find_last({letter: text.rfind(form(letter)) for letter in choices}):
            return last
    if len(text.split()) > _CONTENT_WORDS:
        lowered = text.lower()
        return _find_last({letter: lowered.rfind(str(o).lower()) for letter, o in choices.items()})
    return None


def _find_last(offsets: Mapping[str, int]) -> str | None:
    """Return the letter with the largest offset, the first one of ties; -1 means absent."""
    last = max(offsets, key=lambda letter: offsets[letter], default=None)
    return last if last is not None and offsets[last] >= 0 else None


def official_open_hit(golds: Sequence[object], prediction: object) -> bool:
    """Whether an answer to an open question contains one of the gold answers.

    Args:
        golds: accepted answers.
        prediction: the answer; converted by `str()` if it is not a string.
    """
    gold_forms = [form for gold in golds for form in _normalize(str(gold))]
    texts = [form for form in gold_forms if isinstance(form, str)]
    for form in parse_open(str(prediction)):
        if isinstance(form, str):
            if any(text in form for text in texts):
                return True
        elif form in gold_forms:
            return True
    return False


def parse_open(prediction: str) -> set[Normal]:
    """Return the candidate answers in a text: key phrases and numbers, normalized.

    Example:
        >>> sorted(parse_open("So the answer is 1/64."), key=str)
        [1.0, '1/64', 64.0]
    """
    phrases = _key_phrases(prediction)
    numbers = [n for phrase in phrases for pattern in _NUMBERS for n in pattern.findall(phrase)]
    return {form for text in (*phrases, *numbers) for form in _normalize(text)}


def _key_phrases(prediction: str) -> list[str]:
    """Return the shortest text after a cue in each sentence; the whole answer if there is none."""
    whole = prediction.strip().strip(".").lower()
    # The lower-cased text has no capital to end a sentence at, so in effect only lines are split.
    sentences = _SENTENCE_END.split(whole)
    phrases = []
    for index, sentence in enumerate(sentences):
        is_last = index == len(sentences) - 1
        tails = list(_tails(sentence, (*_CUES, _LAST_CUE) if is_last else _CUES))
        if tails and (shortest := _shortest(tails)) not in _EMPTY and shortest:
            phrases.append(shortest)
    return phrases or [whole]


def _tails(sentence: str, cues: Sequence[str]) -> Iterator[str]:
    """Yield the text after the last occurrence of each cue."""
    for cue in cues:
        if cue in sentence:
            yield sentence.rpartition(cue)[2].strip()


def _shortest(tails: Sequence[str]) -> str:
    """Return the shortest text; an empty one is replaced by the next, as in the original."""
    best = ""
    for tail in tails:
        if not best or len(tail) < len(best):
            best = tail
    return best


def _normalize(text: str) -> list[Normal]:
    """Round a number to two decimals; lower-case other text, pad a single letter with a space."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except (ValueError, OverflowError):
        lowered = text.lower()
        return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]
