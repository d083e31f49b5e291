"""Recipes of searches: patterns, and the file."""

from __future__ import annotations

import random
import tomllib
from pathlib import Path

import pytest
from tiny_models import EACH_FAMILY, make_tiny_config

from vlpress.model.families import family_of
from vlpress.quant.plan.target_matching import match_names
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.search.space import Choice, SearchSpace
from vlpress.quant.search.steps import format_recipe, make_step, patterns, recipe_data


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_patterns_match_the_layers_and_no_others(family: str) -> None:
    space = SearchSpace.of(make_tiny_config(family, tied=False))
    names = [spec.name for spec in family_of(space.prepared).targets(space.prepared)]
    rng = random.Random(0)
    for _ in range(10):
        groups = [group for group in space.groups if rng.random() < 0.4]
        wanted = {spec.name for group in groups for spec in group.layers}
        assert set(
            match_names(list(patterns(space.prepared, sorted(wanted))), names, "target")
        ) == (wanted)


def test_all_blocks_have_one_glob_and_some_an_alternation() -> None:
    config = make_tiny_config(tied=False)
    all_blocks = [f"model.layers.{block}.self_attn.o_proj" for block in range(3)]
    assert list(patterns(config, all_blocks)) == ["model.layers.*.self_attn.o_proj"]
    assert list(patterns(config, all_blocks[::2])) == [
        r"re:model\.layers\.(0|2)\.self_attn\.o_proj"
    ]
    assert list(patterns(config, ["lm_head", "visual.merger.mlp.0"])) == [
        "visual.merger.mlp.0",
        "lm_head",
    ]


def test_the_file_is_a_recipe_with_a_step_for_each_scheme(tmp_path: Path) -> None:
    space = SearchSpace.of(make_tiny_config(tied=True))
    chosen = [
        group.choices[number % len(group.choices)] for number, group in enumerate(space.groups)
    ]
    chosen[0] = space.groups[0].choices[1]
    data = recipe_data("found", space.prepared, space.groups, chosen, samples=16, seed=3, tp=2)
    path = tmp_path / "found.toml"
    path.write_text(format_recipe(data, ["first line", "second: 'quoted'"]), encoding="utf-8")
    text = path.read_text("utf-8")
    assert text.startswith("# first line\n# second: 'quoted'\n\nname = \"found\"\n")
    assert tomllib.loads(text) == data
    recipe = Recipe.from_toml(path)
    assert (recipe.tie, recipe.tp) == (False, 2)
    assert (recipe.calibration.samples, recipe.calibration.seed) == (16, 3)
    methods = {(step.method, step.scheme.label) for step in recipe.steps}
    assert {("rtn", "int4 g128 sym"), ("rtn", "int8 g128 sym")} <= methods
    assert {method for method, _ in methods} == {"gptq", "rtn"}


def test_a_recipe_that_quantizes_nothing_is_refused() -> None:
    space = SearchSpace.of(make_tiny_config(tied=False))
    floats = [Choice((None,) * len(group.layers)) for group in space.groups]
    with pytest.raises(ValueError, match="nothing to quantize"):
        recipe_data("none", space.prepared, space.groups, floats, samples=1, seed=0, tp=1)


def test_steps_are_those_of_the_recipe_or_round() -> None:
    scheme = QuantScheme(4, 32)
    assert make_step("decoder", scheme, "gptq").method == "gptq"
    assert make_step("tower", scheme, "rtn").method == "rtn"
    assert make_step("head", scheme, "gptq").method == "rtn"
