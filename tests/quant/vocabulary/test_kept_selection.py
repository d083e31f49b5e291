from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlpress.quant.vocabulary.byte_pairs import BytePairs
from vlpress.quant.vocabulary.selection import required_tokens, select_tokens

TOY = BytePairs(
    {"model": {}},
    {token: index for index, token in enumerate("a b c d ab cd abc abcd 7 77".split())},
    (("a", "b"), ("c", "d"), ("ab", "c"), ("abc", "d"), ("7", "7")),
    {"<s>": 10},
)
REQUIRED = required_tokens(TOY)


def test_bytes_digits_and_added_tokens_are_required() -> None:
    assert REQUIRED == {0, 1, 2, 3, 8, 9, 10}
    assert required_tokens(TOY, [6]) == REQUIRED | {4, 6}


def test_the_most_frequent_tokens_are_kept_with_their_parts() -> None:
    chosen = select_tokens(TOY, REQUIRED, {5: 3, 6: 2, 0: 9}, size=8, multiple=1)
    assert chosen.kept == (0, 1, 2, 3, 5, 8, 9, 10)
    assert (chosen.required, chosen.counted, chosen.filled, chosen.uncounted) == (7, 1, 0, 1)


def test_a_token_that_does_not_fit_leaves_room_for_others() -> None:
    # abcd needs ab and abc as well: three rows, of which two are free.
    chosen = select_tokens(TOY, REQUIRED, {7: 9, 5: 1}, size=9, multiple=1)
    assert chosen.kept == (0, 1, 2, 3, 4, 5, 8, 9, 10)
    assert (chosen.counted, chosen.filled, chosen.uncounted) == (1, 1, 1)


def test_without_a_size_all_tokens_of_the_texts_are_kept_and_rows_filled() -> None:
    chosen = select_tokens(TOY, REQUIRED, {5: 1}, size=None, multiple=9)
    assert chosen.kept == (0, 1, 2, 3, 4, 5, 8, 9, 10)
    assert (chosen.counted, chosen.filled, chosen.uncounted) == (1, 1, 0)


def test_sizes_are_rounded_up_and_refused_out_of_range() -> None:
    assert len(select_tokens(TOY, REQUIRED, {}, size=7, multiple=5).kept) == 10
    with pytest.raises(ValueError, match="tokens is 5; allowed: at least 10, as 7 bytes"):
        select_tokens(TOY, REQUIRED, {}, size=4, multiple=5)
    with pytest.raises(ValueError, match="15 rows would be kept for a tokenizer of 11 tokens"):
        select_tokens(TOY, REQUIRED, {}, size=11, multiple=5)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_choice_is_closed_of_the_size_and_unchanged_by_order(
    byte_pairs: BytePairs, data: st.DataObject
) -> None:
    total = len(byte_pairs.ids)
    counts = data.draw(st.dictionaries(st.integers(0, total - 1), st.integers(1, 9), max_size=200))
    required = required_tokens(byte_pairs)
    size = data.draw(st.integers(len(required), total - 1))
    chosen = select_tokens(byte_pairs, required, counts, size=size, multiple=1)
    assert len(chosen.kept) == size
    assert byte_pairs.closure(chosen.kept) == set(chosen.kept) >= required
    backwards = Counter(dict(reversed(counts.items())))
    assert select_tokens(byte_pairs, required, backwards, size=size, multiple=1) == chosen
