"""VQA accuracy: agreement with ten human answers, after a normalization of both.

Antol et al., "VQA: Visual Question Answering", ICCV 2015, section 3: an answer is right if at least
three people gave it, and the score is averaged over the subsets that leave one person out. The
normalization (case, punctuation, articles, number words, contractions) is that of the VQA
evaluation code in the form that VLMEvalKit uses: a full stop after a digit is kept there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

ENOUGH = 3
"""People that must have given an answer for it to be fully right."""
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"(?<!\d)\.(?!\d)")
_FULL_STOPS = 32  # removed at most; the evaluation code passes a flag (re.UNICODE) as this limit
_ARTICLES = frozenset(("a", "an", "the"))
_NUMBERS = "zero one two three four five six seven eight nine ten".split()
_NUMERALS = {"none": "0", **{word: str(value) for value, word in enumerate(_NUMBERS)}}
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't
haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't
mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've
shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've someone'll
someone's something'd something'd've something'll that's there'd there'd've there're there's they'd
they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
""".split()


def _misspellings(word: str) -> Iterator[str]:
    """Yield a word without each of its apostrophes."""
    for place, character in enumerate(word):
        if character == "'":
            yield word[:place] + word[place + 1 :]


_CONTRACTIONS: Mapping[str, str] = {
    **{wrong: word for word in _CONTRACTED for wrong in _misspellings(word)},
    "somebody'd": "somebodyd",  # reversed in the evaluation code
}


def vqa_accuracy(answers: Sequence[str], prediction: str) -> float:
    """Score a prediction by the number of people that gave the same answer.

    Args:
        answers: one answer per person, at least two.
        prediction: the model's answer.

    Returns:
        The mean over all persons of min(1, equal answers of the others / 3), in [0, 1].

    Example:
        >>> answers = ["the cat"] * 3 + ["dog"] * 7
        >>> round(vqa_accuracy(answers, "Cat."), 3), vqa_accuracy(answers, "a dog")
        (0.9, 1.0)
    """
    text = normalize(prediction)
    equal = [normalize(answer) == text for answer in answers]
    return fmean(min(1.0, (sum(equal) - own) / ENOUGH) for own in equal)


def normalize(text: str) -> str:
    """Return the form of an answer that is compared.

    Example:
        >>> normalize("The  two-seater, isnt it?")
        "2 seater isn't it"
    """
    text = _strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_NUMERALS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _strip_punctuation(text: str) -> str:
    """Remove marks that touch a space, or all of them if a comma is between digits.

    Other marks become spaces. Full stops are removed that touch no digit.
    """
    remove_all = _DIGIT_COMMA.search(text) is not None
    stripped = text
    for mark in _MARKS:
        touches = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if touches or remove_all else " ")
    return _FULL_STOP.sub("", stripped, count=_FULL_STOPS)
