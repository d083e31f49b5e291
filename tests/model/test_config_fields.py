"""Config files that lie: one line, or a model that can be."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import FAMILIES, TinyConfig

from vlpress.model.config import ModelConfig, read_checkpoint_json
from vlpress.model.config_fields import Fields

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**30)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def places(raw: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in raw.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("nested", [False, True])
@settings(
    deadline=None,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # it is a function
)
@given(data=st.data())
def test_any_value_anywhere_gives_a_config_or_one_line(
    tiny_config: TinyConfig, family: str, nested: bool, data: st.DataObject
) -> None:
    raw: Any = copy.deepcopy(dict(tiny_config(family, nested=nested).raw))
    *path, last = data.draw(st.sampled_from(sorted(places(raw))))
    section = raw
    for key in path:
        section = section[key]
    section[last] = data.draw(VALUES)
    try:
        found = ModelConfig.from_dict(raw)
    except ValueError as error:
        assert str(error).startswith("config.json: ") and "\n" not in str(error)
        assert len(str(error)) < 400
    else:
        sizes = found.text.vocab_size, found.text.num_hidden_layers, found.vision.depth
        assert all(0 < size <= 2**24 for size in sizes)
        assert 0 <= found.image_token_id < found.text.vocab_size


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "a.x is 0; allowed: a whole number from 1 to 9"),
        (10, "a.x is 10;"),
        (2.5, "a.x is 2.5;"),
        (True, "a.x is True;"),
        (None, "a.x is None;"),
        ("1" * 99, "a.x is '" + "1" * 36 + "...;"),
    ],
)
def test_whole_numbers_are_within_bounds(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=r"^config\.json: ") as caught:
        Fields({"x": value}, "a").whole("x", 1, most=9)
    assert said in str(caught.value)


def test_what_is_missing_takes_the_default_and_a_point_does_no_harm() -> None:
    fields = Fields({"point": 3.0, "list": [1, 2.0]})
    assert fields.whole("x", 7, most=9) == 7 and fields.whole("point", 7, most=9) == 3
    assert fields.wholes("list", (), most=2) == (1, 2) and fields.wholes("y", (4,), most=4) == (4,)
    assert fields.positive("point", 1, most=3) == 3.0
    for wrong in (0, -1, float("nan"), float("inf"), "1", None):
        with pytest.raises(ValueError, match=r"z is .*; allowed: a number above 0, at most 3"):
            Fields({"z": wrong}).positive("z", 1, most=3)
    for odd in ("12", 5, [1, "2"], [3]):
        with pytest.raises(ValueError, match=r"config\.json: z is "):
            Fields({"z": odd}).wholes("z", (), most=2)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "1" * 10**5, "{", "\ud800", ""])
def test_json_that_breaks_parsers(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ValueError, match=r"config\.json: (not valid JSON|holds a)"):
        read_checkpoint_json(path)


def test_json_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"a": [1, "ü"]}), encoding="utf-8")
    assert read_checkpoint_json(tmp_path / "x.json") == {"a": [1, "ü"]}
