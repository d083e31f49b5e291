"""Validation: errors of one line with path, value and the allowed values."""

import copy
import pickle
from dataclasses import FrozenInstanceError, asdict, field, replace
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, StrictBool, StrictInt

from vlpress.common.validation import (
    Allowed,
    Integer,
    OneOf,
    Real,
    Truthy,
    check_value,
    parse,
    shown,
    validated,
)

Share = Annotated[float, Real(least=0, most=1)]
Names = Annotated[tuple[str, ...], Field(min_length=1), Allowed("a list of names, at least one")]


@validated
class Inner:
    size: Annotated[int, Integer(1, 9)]
    flag: StrictBool = True


@validated
class Outer:
    """A dataclass with a field of each kind."""

    inner: Inner
    share: Share = 0.5
    names: Names = ("a",)
    kind: Literal["x", "y"] = "x"
    level: Annotated[int, OneOf((1, 2), "remove it")] = 1
    count: StrictInt = 0
    extra: dict[str, Inner] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.share == 1 and self.kind == "y":
            raise ValueError("share is 1 with kind y; allowed: with kind x")


class Section(BaseModel):
    rows: list[Inner] = []
    truth: Truthy = False


def test_values_are_frozen_hashable_and_copied_as_dataclasses() -> None:
    value = Outer(Inner(3), 1)
    assert hash(Inner(3)) == hash(Inner(3)) and value == Outer(Inner(3), 1)
    assert replace(value, share=0.25).share == 0.25
    assert copy.deepcopy(value) == pickle.loads(pickle.dumps(value)) == value
    assert asdict(value)["inner"] == {"size": 3, "flag": True}
    with pytest.raises(FrozenInstanceError):
        value.share = 0  # type: ignore[misc]  # frozen


def test_whole_numbers_stay_whole_in_real_fields() -> None:
    assert type(Outer(Inner(3), 1).share) is int and type(Outer(Inner(3), 1.0).share) is float
    assert type(parse(Outer, {"inner": {"size": 3}, "share": 0}).share) is int


def test_plain_data_becomes_values() -> None:
    data = {"inner": {"size": 2}, "names": ["a", "b"], "extra": {"k": {"size": 9, "flag": False}}}
    assert parse(Outer, data) == Outer(Inner(2), names=("a", "b"), extra={"k": Inner(9, False)})
    assert parse(Section, {"rows": [{"size": 1}], "truth": [0], "unknown": 1}).truth


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 1.5}, "a[1].share is 1.5; allowed: a number from 0 to 1"),
        ({"share": float("nan")}, "a[1].share is nan; allowed: a number from 0 to 1"),
        ({"share": True}, "a[1].share is True; allowed: a number from 0 to 1"),
        ({"share": 10**400}, "a[1].share is 1000"),
        ({"names": []}, "a[1].names is []; allowed: a list of names, at least one"),
        ({"names": "x"}, "a[1].names is 'x'; allowed: a list of names, at least one"),
        ({"names": [1]}, "a[1].names is [1]; allowed: a list of names, at least one"),
        ({"kind": "z"}, "a[1].kind is 'z'; allowed: x, y"),
        ({"kind": [1]}, "a[1].kind is [1]; allowed: x, y"),
        ({"level": 3}, "a[1].level is 3; allowed: 1, 2; remove it"),
        ({"level": "1"}, "a[1].level is '1'; allowed: 1, 2"),
        ({"count": 1.0}, "a[1].count is 1.0; allowed: a whole number"),
        ({"inner": {"size": 0}}, "a[1].inner.size is 0; allowed: a whole number from 1 to 9"),
        ({"inner": {"size": 10**400}}, "a[1].inner.size is 1000"),
        ({"inner": {"size": "0" * 99}}, "a[1].inner.size is '" + "0" * 36 + "...; allowed"),
        ({"inner": {"size": 1, "flag": 1}}, "a[1].inner.flag is 1; allowed: true or false"),
        ({"inner": 3}, "a[1].inner is 3; allowed: a table of keys and values"),
        ({"inner": {}}, "a[1].inner.size is missing; it is required"),
        ({"extra": {"a b": {"size": 0}}}, "a[1].extra['a b'].size is 0; allowed"),
        ({"other": 1}, "a[1]: unknown key 'other'; allowed: count, extra, inner, kind, level, na"),
        ({"share": 1, "kind": "y"}, "a[1]: share is 1 with kind y; allowed: with kind x"),
    ],
)
def test_an_error_names_path_value_and_allowed_values(
    changes: dict[str, Any], message: str
) -> None:
    data = {"inner": {"size": 1}} | changes
    with pytest.raises(ValueError, match=r"^file: ") as caught:
        parse(Outer, data, "file", "a[1]")
    assert str(caught.value).startswith(f"file: {message}")
    assert type(caught.value) is ValueError and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"allowed|required") as caught:
        Outer(**data)
    assert type(caught.value) is ValueError and "\n" not in str(caught.value)


def test_remedies_and_known_keys_of_the_caller() -> None:
    with pytest.raises(ValueError, match=r"^size is 0; allowed: .* 9; fetch it again$"):
        parse(Inner, {"size": 0}, remedy="fetch it again")
    with pytest.raises(ValueError, match=r"unknown key 'x'; allowed: one, two$"):
        parse(Inner, {"size": 1, "x": 1}, keys=("two", "one"))
    with pytest.raises(ValueError, match=r"^rows\[1\]\.size is 0"):
        parse(Section, {"rows": [{"size": 1}, {"size": 0}]})


def test_positional_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"^flag is 3; allowed: true or false"):
        Inner(1, 3)  # type: ignore[arg-type]  # a wrong type on purpose
    with pytest.raises(TypeError, match="2 fields"):
        Inner(1, True, 3)  # type: ignore[call-arg]  # too many arguments


def test_an_argument_is_checked_by_the_annotation_of_a_field() -> None:
    check_value(Share, 0.5, "strength")
    with pytest.raises(ValueError, match=r"^strength is 2; allowed: a number from 0 to 1$"):
        check_value(Share, 2, "strength")


@given(st.one_of(st.floats(), st.integers(), st.booleans(), st.text(), st.none()))
def test_bounds_of_real_numbers(value: object) -> None:
    inside = type(value) in (int, float) and 0 < value <= 3  # type: ignore[operator]
    try:
        assert parse(Section3, {"x": value}).x == value and inside
    except ValueError:
        assert not inside


class Section3(BaseModel):
    x: Annotated[float, Real(above=0, most=3)]


def test_values_are_shown_in_a_line() -> None:
    deep: list[Any] = []
    for _ in range(10**5):
        deep = [deep]
    assert shown("a\nb") == "'a\\nb'" and shown(1.5) == "1.5"
    assert len(shown("x" * 1000)) == 40
    assert shown(16**9999) == "of type int" and shown(deep) == "of type list"
