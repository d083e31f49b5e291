"""Sparsity masks as data: how many weights a step keeps, and the score that ranks them.

A masked weight is held at zero, which is a level of every grid. The result is an ordinary
checkpoint in which these weights are zero; no format has a field for masks. Without torch, so that
recipes can be read before it is loaded; `methods/masks.py` chooses the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from ...common.validation import Allowed, OneOf, Real, validated

PATTERNS = tuple(f"{kept}:{width}" for width in (2, 4, 8) for kept in range(1, width))
"""Patterns N:M, which keep N of every M neighbouring input features. Every width that a plan
accepts is a multiple of these M."""

Keep = Annotated[
    Annotated[float, Real(above=0, below=1)] | Annotated[str, OneOf(PATTERNS)],
    Allowed(f"a number above 0 and below 1, or a pattern: {', '.join(PATTERNS)}"),
]
"""Share of the weights of an output row that are kept, or a pattern N:M."""
Score = Annotated[
    Literal["magnitude", "wanda", "sparsegpt"], OneOf(("magnitude", "wanda", "sparsegpt"))
]
"""See `MaskRule.score`."""


@validated
class MaskRule:
    """Which weights are held at zero.

    Raises:
        ValueError: a field is out of range.
    """

    keep: Keep
    score: Score
    """Weights with the smallest scores become zero: `|w|`; `|w| sqrt(H_jj)` with the energy H_jj of
    the input ("wanda"); or the output error that zero causes while the weight is solved
    ("sparsegpt")."""

    @property
    def pattern(self) -> tuple[int, int] | None:
        """N and M of a pattern N:M, or None."""
        if not isinstance(self.keep, str):
            return None
        kept, _, width = self.keep.partition(":")
        return int(kept), int(width)

    @property
    def label(self) -> str:
        """Short form for tables, for example `keep 2:4 by wanda`."""
        return f"keep {self.keep} by {self.score}"

    def kept(self, columns: int) -> int:
        """Return how many of the first columns of a row are kept, if the share is a number.

        Raises:
            ValueError: it is a pattern.
        """
        if isinstance(self.keep, str):
            raise ValueError(f"keep is {self.keep!r}; a pattern has no share of a whole row")
        return round(self.keep * columns)


def describe_mask(described: Mapping[str, Any]) -> str:
    """Describe the mask of a step in a line, from its entry in the record of a checkpoint."""
    return (
        f"zeros: {described['zeros']:.1%} of the weights of {described['layers']} layers "
        f"(keep {described['keep']} by {described['score']})"
    )
