"""Config files with wrong values: an error of one line, or a model within bounds."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import EACH_FAMILY, TinyConfig

from vlpress.common.validation import parse
from vlpress.model.config import ModelConfig, read_checkpoint_json
from vlpress.model.config_fields import (
    Qwen2TextSection,
    Qwen2VisionSection,
    Qwen25VisionSection,
    Section,
    TokenSection,
    VisionSection,
)

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


@pytest.mark.parametrize("family", EACH_FAMILY)
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
        config = ModelConfig.from_dict(raw)
    except ValueError as error:
        assert str(error).startswith("config.json: ") and "\n" not in str(error)
        assert len(str(error)) < 400
    else:
        sizes = config.text.vocab_size, config.text.num_hidden_layers, config.vision.depth
        assert all(0 < size <= 2**24 for size in sizes)
        assert 0 <= config.image_token_id < config.text.vocab_size


@pytest.mark.parametrize(
    ("section", "field", "value", "allowed"),
    [
        (VisionSection, "depth", 0, "a whole number from 1 to 4096"),
        (VisionSection, "depth", 4097, "a whole number from 1 to 4096"),
        (VisionSection, "depth", 2.5, "a whole number"),
        (VisionSection, "depth", True, "a whole number"),
        (VisionSection, "depth", None, "a whole number"),
        (VisionSection, "depth", "3", "a whole number"),
        (VisionSection, "in_chans", 17, "a whole number from 1 to 16"),
        (Qwen2VisionSection, "embed_dim", 2**20 + 1, "a whole number from 1 to 1048576"),
        (Qwen2VisionSection, "mlp_ratio", 65, "a number above 0, at most 64"),
        (Qwen2VisionSection, "hidden_act", "silu", "quick_gelu"),
        (Qwen25VisionSection, "window_size", -1, "a whole number from 0"),
        (Qwen25VisionSection, "fullatt_block_indexes", "12", "a list"),
        (Qwen25VisionSection, "fullatt_block_indexes", {"7": 1}, "a list"),
        (Qwen2TextSection, "rms_norm_eps", 0, "a number above 0, at most 1"),
        (Qwen2TextSection, "rms_norm_eps", float("nan"), "a number above 0, at most 1"),
        (Qwen2TextSection, "rope_theta", float("inf"), "a number above 0, at most 1e+12"),
        (Qwen2TextSection, "rope_theta", 10**400, "a number above 0, at most 1e+12"),
        (Qwen2TextSection, "vocab_size", 10**400, "a whole number from 1 to 16777216"),
        (TokenSection, "image_token_id", -1, "a whole number from 0"),
    ],
)
def test_values_out_of_bounds_are_refused(
    section: type[Section], field: str, value: object, allowed: str
) -> None:
    with pytest.raises(ValueError, match=rf"^config\.json: a\.{field} is ") as caught:
        parse(section, {field: value}, "config.json", "a")
    assert f"; allowed: {allowed}" in str(caught.value)
    assert len(str(caught.value)) < 200


def test_elements_of_lists_are_named() -> None:
    with pytest.raises(ValueError, match=r"fullatt_block_indexes\[1\] is '2'; allowed: a whole"):
        parse(Qwen25VisionSection, {"fullatt_block_indexes": [1, "2"]})


def test_missing_keys_take_defaults_and_whole_floats_are_read() -> None:
    section = parse(Qwen25VisionSection, {"depth": 3.0, "fullatt_block_indexes": [1, 2.0]})
    assert (section.depth, section.num_heads, section.fullatt_block_indexes) == (3, 16, (1, 2))
    assert type(section.depth) is int and type(section.fullatt_block_indexes[1]) is int
    assert parse(VisionSection, {"in_chans": 1}).in_channels == 1
    assert parse(VisionSection, {"in_channels": 2, "in_chans": 1}).in_channels == 2


def test_keys_without_effect_are_not_checked() -> None:
    unused = {"use_sliding_window": False, "max_window_layers": None, "unknown": [1]}
    assert parse(Qwen2TextSection, unused).max_window_layers == 80
    nested = {"rope_parameters": {"rope_theta": 5}, "rope_scaling": 3, "rope_theta": None}
    assert sizes_of(nested)["rope_theta"] == 5
    empty: dict[str, Any] = {"rope_parameters": {}, "rope_scaling": None, "head_dim": 0}
    assert parse(Qwen2TextSection, empty).head_dim is None
    sizes = sizes_of(empty)
    assert (sizes["mrope_section"], sizes["rope_theta"]) == ((16, 24, 24), 1e6)


def sizes_of(raw: dict[str, Any]) -> dict[str, Any]:
    section = parse(Qwen2TextSection, raw)
    return section.common_sizes(section.rope)


@pytest.mark.parametrize("text", ["[" * 10**5, '{"a":' * 10**5, "1" * 10**5, "{", "\ud800", ""])
def test_json_that_breaks_parsers(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ValueError, match=r"config\.json: (not valid JSON|holds a)"):
        read_checkpoint_json(path)


def test_json_is_read_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"a": [1, "ü"]}), encoding="utf-8")
    assert read_checkpoint_json(tmp_path / "x.json") == {"a": [1, "ü"]}
