"""The [kv_cache] table of recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vlpress.quant.recipe.recipe import Recipe

STEP = {"method": "rtn", "bits": 4}


def recipe(**top: Any) -> Recipe:
    return Recipe.from_dict({"step": [STEP], **top})


def test_the_table_asks_for_calibration_and_is_recorded(tmp_path: Path) -> None:
    file = tmp_path / "kv.toml"
    file.write_text('[kv_cache]\nbits = 8\ntype = "fp8"\n[[step]]\nmethod = "rtn"\nbits = 4\n')
    from_file = Recipe.from_toml(file)
    assert from_file.needs_calibration and not recipe().needs_calibration
    assert from_file.to_dict()["kv_cache"] == {"bits": 8, "type": "fp8"}
    assert Recipe.from_dict(from_file.to_dict()) == from_file
    assert recipe(kv_cache={}).kv_cache == from_file.kv_cache, "both are defaults"
    assert "kv_cache" not in recipe().to_dict()


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"bits": 4}, r"kv_cache.bits is 4; allowed: 8"),
        ({"type": "int"}, r"kv_cache.type is 'int'; allowed: fp8"),
        ({"group_size": 32}, r"kv_cache.*group_size.*bits"),
        ("fp8", r"kv_cache is 'fp8'"),
    ],
)
def test_other_caches_are_refused_in_one_line(table: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named) as error:
        recipe(kv_cache=table)
    assert "\n" not in str(error.value)
