from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlpress.quant.vocabulary.kept_tokens import REMOVED, KeptTokens

KEPT = KeptTokens((1, 2, 5), rows=8)


def test_new_ids_are_positions_in_the_order_of_the_original() -> None:
    assert KEPT.new_ids == {1: 0, 2: 1, 5: 2}
    mapped = KEPT.to_new(torch.tensor([[5, 0], [1, 7]]))
    assert mapped.tolist() == [[2, REMOVED], [0, REMOVED]]
    assert KEPT.translate([5, 1, 1]) == [2, 0, 0]
    assert KEPT.translate([5, 6]) is None


def test_the_record_has_one_bit_per_row() -> None:
    # Bits 1, 2 and 5 of one byte: 0x26.
    assert KEPT.to_dict() == {"rows": 8, "kept": "Jg=="}


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1)))))
def test_records_are_read_back(drawn: tuple[int, set[int]]) -> None:
    rows, ids = drawn
    if ids:
        kept = KeptTokens(tuple(sorted(ids)), rows)
        assert KeptTokens.from_dict(kept.to_dict()) == kept


@pytest.mark.parametrize(
    "record", [{}, {"rows": 8, "kept": "!"}, {"rows": 80, "kept": "Jg=="}, {"rows": 8, "kept": 3}]
)
def test_a_damaged_record_is_refused(record: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="record of the kept tokens is damaged"):
        KeptTokens.from_dict(record)


@pytest.mark.parametrize("ids", [(), (2, 1), (1, 1), (-1, 2), (3, 8)])
def test_ids_are_increasing_and_below_the_number_of_rows(ids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="kept tokens of 8 rows"):
        KeptTokens(ids, 8)
