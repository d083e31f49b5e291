"""Extraction of the chosen option from a free-text answer, by named rule profiles.

The rules restate VLMEvalKit's matching without a judge model, which changed twice, and its copy in
Qwen's MMMU script. The same text can score differently under each, so a score is only meaningful
with its profile. A profile is data (`RuleProfile`); the code is two steps, letters then texts. No
rule guesses at random: an answer without a recognizable option is a parse failure and counts as
wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

REFUSAL = "Z"
ARTICLE_TOKENS = 3

_API_FAILURE = "Failed to obtain answer via API"
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_SEPARATORS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
# No word boundary after the letter: "The answer is cat" gives C in this version, as published.
_ANSWER_IS = re.compile(r"answer is\s*(?:\*\*)?\s*([A-D])", re.IGNORECASE)


@dataclass(frozen=True)
class RuleProfile:
    """One published version of the matching rules.

    The name is the date of its introduction in VLMEvalKit; "qwen" is Qwen's MMMU script.
    """

    name: str
    letter_window: int | None
    """The chosen letter must be among this many last tokens; None: anywhere."""
    length_guard: bool
    """No text match in answers longer than twice all options together."""
    answer_is: bool
    """Read the letter after "answer is" if the letter rule found none."""
    article_guard: bool = False
    """Skip the letter rule for a lone A in answers of more than three tokens: an article."""


PROFILES: Mapping[str, RuleProfile] = {
    p.name: p
    for p in (
        RuleProfile("2024", letter_window=None, length_guard=False, answer_is=False),
        RuleProfile("2025-08", letter_window=4, length_guard=True, answer_is=False),
        RuleProfile("2026-06", letter_window=4, length_guard=True, answer_is=True),
        RuleProfile(
            "qwen", letter_window=None, length_guard=False, answer_is=False, article_guard=True
        ),
    )
}
DEFAULT_PROFILE = "2025-08"


def find_profile(name: str) -> RuleProfile:
    """Look up a profile by name.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in PROFILES:
        raise ValueError(
            f"unknown extraction profile {name!r}; choose one of {', '.join(PROFILES)}"
        )
    return PROFILES[name]


def extract_choice(
    prediction: object, choices: Mapping[str, object], profile: str = DEFAULT_PROFILE
) -> str | None:
    """Extract the letter of the option that an answer names.

    Args:
        prediction: the answer; converted by `str()` if it is not a string.
        choices: option letter -> option text, in letter order, existing options only.
        profile: a name in `PROFILES`.

    Returns:
        A letter of `choices`, `REFUSAL` ("Z"), or None if no rule applies.

    Raises:
        ValueError: the profile is unknown.

    Example:
        >>> extract_choice("A dog is in the picture", {"A": "cat", "B": "dog"}, "2024")
        'A'
    """
    rules = find_profile(profile)
    text = str(prediction)
    return _match_letter(text, choices, rules) or _match_text(text, choices, rules)


def count_failures(letters: Iterable[str | None]) -> dict[str, int]:
    """Count `parse_failures` (None) and `refusals` among extracted letters."""
    extracted = list(letters)
    return {
        "parse_failures": sum(letter is None for letter in extracted),
        "refusals": sum(letter == REFUSAL for letter in extracted),
    }


def _match_letter(text: str, choices: Mapping[str, object], rules: RuleProfile) -> str | None:
    if _API_FAILURE in text:
        return None
    if any(phrase in text for phrase in _REFUSALS):
        return REFUSAL
    tokens = text.translate(_SEPARATORS).split()
    letters = [letter for letter in choices if letter in tokens]
    if len(letters) == 1:
        window = rules.letter_window
        near_the_end = window is None or tokens.index(letters[0]) >= len(tokens) - window
        article = rules.article_guard and "A" in tokens and len(tokens) > ARTICLE_TOKENS
        if near_the_end and not article:
            return letters[0]
    elif not letters and REFUSAL in tokens:
        return REFUSAL
    if rules.answer_is and (match := _ANSWER_IS.search(text)):
        letter = match.group(1).upper()
        if letter in choices:
            return letter
    return None


def _match_text(text: str, choices: Mapping[str, object], rules: RuleProfile) -> str | None:
    options = {letter: str(option).lower() for letter, option in choices.items()}
    if rules.length_guard and len(text) > 2 * sum(len(str(o)) for o in choices.values()):
        return None
    lowered = text.lower()
    contained = [letter for letter, option in options.items() if option in lowered]
    return contained[0] if len(contained) == 1 else None
