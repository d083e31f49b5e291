"""Which option a free-text answer chose: rule profiles with names and dates.

The rules restate VLMEvalKit's judge-free matching, which changed twice, and the copy of it that
Qwen's own MMMU script carries; the same text can score differently under each, so a score is only
meaningful with its profile. A profile is data (`RuleProfile`), the two steps below are the only
code. No rule guesses at random: an answer nothing can be inferred from stays a parse failure and
counts as wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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
# No word boundary behind the letter: "The answer is cat" gives C in this version, as published.
_ANSWER_IS = re.compile(r"answer is\s*(?:\*\*)?\s*([A-D])", re.IGNORECASE)


@dataclass(frozen=True)
class RuleProfile:
    """One published version of the matching rules.

    Years and months are those since which VLMEvalKit has them; "qwen" is Qwen's own MMMU script.
    """

    name: str
    letter_window: int | None
    """The chosen letter must stand among this many last tokens; None = anywhere."""
    length_guard: bool
    """No text match in answers longer than twice all options together."""
    answer_is: bool
    """Read the letter behind "answer is" when the letter rule found nothing."""
    article_guard: bool = False
    """In answers of more than three tokens a lone A may be an article: the letter rule passes."""


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


def rule_profile(name: str) -> RuleProfile:
    """Look a profile up by name.

    Raises:
        ValueError: no such profile.
    """
    if name not in PROFILES:
        raise ValueError(
            f"unknown extraction profile {name!r}; choose one of {', '.join(PROFILES)}"
        )
    return PROFILES[name]


def extract_choice(
    prediction: object, choices: Mapping[str, object], profile: str = DEFAULT_PROFILE
) -> str | None:
    """Infer the option letter that an answer names.

    Args:
        prediction: the answer; anything but a string is taken by its `str()`.
        choices: option letter -> option text, in letter order, existing options only.
        profile: a name in `PROFILES`.

    Returns:
        A letter of `choices`, `REFUSAL` ("Z"), or None when the rules infer nothing.

    Example:
        >>> extract_choice("A dog is in the picture", {"A": "cat", "B": "dog"}, "2024")
        'A'
    """
    rules = rule_profile(profile)
    text = str(prediction)
    return _match_letter(text, choices, rules) or _match_text(text, choices, rules)


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
    if rules.answer_is and (found := _ANSWER_IS.search(text)):
        letter = found.group(1).upper()
        if letter in choices:
            return letter
    return None


def _match_text(text: str, choices: Mapping[str, object], rules: RuleProfile) -> str | None:
    options = {letter: str(option).lower() for letter, option in choices.items()}
    if rules.length_guard and len(text) > 2 * sum(len(str(o)) for o in choices.values()):
        return None
    lowered = text.lower()
    found = [letter for letter, option in options.items() if option in lowered]
    return found[0] if len(found) == 1 else None
