from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.common.checksum import KEY, verify_checksum, with_checksum

VALUES = st.dictionaries(
    st.text(max_size=4).filter(lambda key: key != KEY),
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=6),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=6,
    ),
    max_size=5,
)


@given(VALUES)
def test_values_survive_a_round_trip(values: dict[str, Any]) -> None:
    assert verify_checksum(json.loads(json.dumps(with_checksum(values))), "x") == values


@given(VALUES, VALUES)
def test_any_change_is_detected(values: dict[str, Any], others: dict[str, Any]) -> None:
    changed = {**others, KEY: with_checksum(values)[KEY]}
    if json.dumps(others, sort_keys=True) != json.dumps(values, sort_keys=True):
        with pytest.raises(ValueError, match="x is damaged or was edited"):
            verify_checksum(changed, "x")


@pytest.mark.parametrize("value", [None, 3, [], "x", {}])
def test_values_without_checksum_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="x is damaged"):
        verify_checksum(value, "x")
