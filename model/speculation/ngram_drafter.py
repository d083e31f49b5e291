"""Drafts copied from the prompt and the answer: what followed the last tokens earlier.

Prompt lookup ("Prompt Lookup Decoding", github.com/apoorvumang/prompt-lookup-decoding): the longest
of the last n-grams that occurred before gives the drafts. It costs nothing and pays where answers
repeat text of the prompt or their own, such as keys of a table; text in an image is not in the
prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import Tensor

from ..processing.inputs import Batch
from .drafts import Choice, Chooser

LONGEST = 3
"""Tokens of the longest n-gram that is looked up."""


class NgramDrafter:
    """Looks up n-grams of text.

    Args:
        prompt: token ids of the prompt.
        excluded: tokens that are no text, such as placeholders of images: never part of a match or
            a draft.
    """

    def __init__(self, prompt: Sequence[int], excluded: Collection[int]) -> None:
        self._prompt, self._excluded = list(prompt), frozenset(excluded)

    def begin(self, batch: Batch, hidden: Tensor, position: int) -> None:
        """See `Drafter.begin`; the prompt is known."""

    def propose(self, chooser: Chooser, count: int) -> list[Choice]:
        """See `Drafter.propose`; no drafts if no n-gram occurred before."""
        drafts = look_up([*self._prompt, *chooser.tokens], count, self._excluded)
        return [Choice(token, None) for token in drafts]

    def accept(self, hidden: Tensor, drafts: Sequence[int]) -> None:
        """See `Drafter.accept`; nothing is learned."""


def look_up(tokens: Sequence[int], count: int, excluded: Collection[int] = ()) -> list[int]:
    """Return up to `count` tokens that followed the newest earlier occurrence of the last n-gram.

    Args:
        tokens: all tokens so far.
        count: number of drafts.
        excluded: tokens that end a draft, and that a matched n-gram does not contain.
    """
    for size in range(min(LONGEST, len(tokens) - 1), 0, -1):
        last = list(tokens[-size:])
        if any(token in excluded for token in last):
            continue
        for start in range(len(tokens) - size - 1, -1, -1):
            if list(tokens[start : start + size]) == last:
                following = tokens[start + size : start + size + count]
                return _until(following, excluded)
    return []


def _until(tokens: Sequence[int], excluded: Collection[int]) -> list[int]:
    kept: list[int] = []
    for token in tokens:
        if token in excluded:
            break
        kept.append(token)
    return kept
