"""Keep a random share of the tokens: the baseline of every other rule.

The choice depends on the seed and the pixels alone, so an image has the same tokens in every
prompt, process and library version.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Annotated, ClassVar

from ...common.validation import Integer, Real, validated
from .rule import Frame, ReductionRule, kept_count

if TYPE_CHECKING:
    from torch import Tensor


@validated
class Random(ReductionRule):
    """Keeps a random share of the tokens of every image."""

    keep: Annotated[float, Real(above=0, most=1)]
    """Share of the tokens that is kept; at least one token is."""
    seed: Annotated[int, Integer(0)] = 0

    method: ClassVar[str] = "random"

    def select(self, frame: Frame) -> Tensor:
        """See `ReductionRule.select`."""
        tokens = len(frame.features)
        return random_tokens(tokens, kept_count(self.keep, tokens), f"{self.seed}|{frame.content}")


def random_tokens(tokens: int, count: int, key: str) -> Tensor:
    """Select the tokens with the smallest hash of key and index.

    Args:
        tokens: number of tokens.
        count: number of tokens to keep, 1 to `tokens`.
        key: decides the choice.

    Returns:
        int64 `[count]`, ascending.
    """
    import torch

    def rank(index: int) -> bytes:
        return hashlib.sha256(f"{key}|{index}".encode()).digest()

    return torch.tensor(sorted(sorted(range(tokens), key=rank)[:count]))
