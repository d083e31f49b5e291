import pytest
from tiny_models import EACH_FAMILY, make_tiny_config

from vlpress.model.families import family_of
from vlpress.quant.driver.pipeline import make_plan
from vlpress.quant.plan.part_targets import spell_out_parts
from vlpress.quant.recipe.recipe import Recipe

QWEN2 = ("visual.blocks.*", "visual.merger.*")
QWEN3 = ("visual.blocks.*", "visual.deepstack_merger_list.*", "visual.merger.*")
RTN = {"method": "rtn", "bits": 8, "group_size": -1}


def recipe(*steps: dict[str, object]) -> Recipe:
    return Recipe.from_dict({"name": "test", "step": list(steps)})


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_presets_target_the_whole_tower(family: str) -> None:
    config = make_tiny_config(family)
    spelled = spell_out_parts(Recipe.resolve("vision-w8a8+decoder-w4a16"), config)
    patterns = QWEN3 if family.startswith("qwen3_vl") else QWEN2
    assert [transform.targets for transform in spelled.transforms] == [patterns]
    assert [step.targets for step in spelled.steps] == [patterns, ("model.layers.*",)]
    assert spell_out_parts(spelled, config) == spelled
    plan = make_plan(config, recipe(RTN | {"targets": ["tower"]}))
    tower = {spec.name for spec in family_of(config).linears(config) if spec.part == "tower"}
    assert {row.name for row in plan.quantized} == tower


def test_every_part_has_a_name() -> None:
    config = make_tiny_config("qwen3_vl")
    step = RTN | {"targets": ["tower", "decoder", "head"], "ignore": ["decoder", "*.o_proj"]}
    (spelled,) = spell_out_parts(recipe(step), config).steps
    assert spelled.targets == (*QWEN3, "model.layers.*", "lm_head")
    assert spelled.ignore == ("model.layers.*", "*.o_proj")
    assert len(make_plan(config, recipe(RTN | {"targets": ["head"]})).quantized) == 1


def test_stages_without_layers_have_no_pattern() -> None:
    config = make_tiny_config("qwen3_vl", vision={"deepstack_visual_indexes": []})
    (spelled,) = spell_out_parts(recipe(RTN | {"targets": ["tower"]}), config).steps
    assert spelled.targets == QWEN2


def test_a_tied_head_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="'lm_head': the output head of this model shares"):
        make_plan(make_tiny_config(tied=True), recipe(RTN | {"targets": ["head"]}))
