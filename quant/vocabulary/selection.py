"""The choice of the tokens that a pruned vocabulary keeps.

Kept are, in this order: the tokens that the model cannot do without, those that the given texts
contain, the most frequent first, and tokens in the order of their merges until the vocabulary has
the size that was asked for. No row is padding: a row of zeros would have the logit 0, which exceeds
all others where these are negative.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from .byte_pairs import BytePairs


@dataclass(frozen=True)
class Selection:
    """The kept tokens, and why they are."""

    kept: tuple[int, ...]
    """Ids in increasing order, closed under merges."""
    required: int
    """Tokens that every pruned vocabulary has, with their parts."""
    counted: int
    """Further tokens that are kept for the texts, with their parts."""
    uncounted: int
    """Tokens of the texts that are not kept, for want of rows."""

    @property
    def filled(self) -> int:
        """Tokens that are kept only to reach the size."""
        return len(self.kept) - self.required - self.counted


def required_tokens(tokens: BytePairs, further: Iterable[int] = ()) -> set[int]:
    """Return the ids of tokens that are always kept, with those that they are merged from.

    They are all bytes, digits and added tokens.

    Args:
        tokens: of the original.
        further: ids of others, such as those of the chat template.
    """
    fixed = tokens.bytes | tokens.digits | tokens.unknown | set(tokens.added.values())
    return tokens.closure(fixed | set(further))


def select_tokens(
    tokens: BytePairs,
    required: Collection[int],
    counts: Mapping[int, int],
    *,
    size: int | None,
    multiple: int,
) -> Selection:
    """Choose the tokens to keep.

    Args:
        tokens: of the original.
        required: ids that are kept in any case, closed under merges.
        counts: occurrences of the tokens of the texts, by id.
        size: number of tokens to keep; None: as many as the texts have. It is rounded up to a
            multiple of `multiple`.
        multiple: of the number of rows.

    Raises:
        ValueError: the size is below the number of required tokens, or nothing would be removed.
    """
    kept = set(required)
    ordered = sorted(counts, key=lambda token: (-counts[token], token))
    if size is None:
        size = len(tokens.closure(kept.union(counts)))
    rows = -(-size // multiple) * multiple
    _check_size(tokens, len(kept), rows, multiple)
    _add_closed(tokens, kept, ordered, rows)
    counted = len(kept) - len(required)
    uncounted = len(set(counts) - kept)
    merged = [tokens.vocab[left + right] for left, right in tokens.merges]
    _add_closed(tokens, kept, merged, rows)
    _add_closed(tokens, kept, tokens.ids.values(), rows)
    return Selection(tuple(sorted(kept)), len(required), counted, uncounted)


def _check_size(tokens: BytePairs, required: int, rows: int, multiple: int) -> None:
    count = len(tokens.ids)
    if rows < required:
        least = -(-required // multiple) * multiple
        raise ValueError(
            f"prune_vocab: tokens is {rows}; allowed: at least {least}, as {required} bytes, "
            "digits, added tokens and tokens of the chat template are always kept"
        )
    if rows >= count:
        raise ValueError(
            f"prune_vocab: {rows} rows would be kept for a tokenizer of {count} tokens, which "
            "removes none; set tokens to a smaller number, or give fewer texts"
        )


def _add_closed(tokens: BytePairs, kept: set[int], ids: Iterable[int], rows: int) -> None:
    """Add each token, with those that it is merged from, if there is room for them."""
    for token in ids:
        if len(kept) == rows:
            return
        if token not in kept:
            needed = tokens.closure([token]) - kept
            if len(kept) + len(needed) <= rows:
                kept |= needed
