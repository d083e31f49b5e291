from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vlpress.eval.fidelity.spread import spread


def test_by_hand() -> None:
    assert spread("abcdefg", 3) == ["a", "c", "e"]
    assert spread("ab", 3) == ["a", "b"]
    assert spread("", 3) == []


@given(total=st.integers(0, 200), most=st.integers(1, 80))
def test_gaps_differ_by_one_at_most(total: int, most: int) -> None:
    chosen = spread(range(total), most)
    assert len(chosen) == min(most, total)
    gaps = {after - before for before, after in itertools.pairwise(chosen)}
    assert not gaps or max(gaps) - min(gaps) <= 1
