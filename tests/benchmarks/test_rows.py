"""Every row of the accuracy table is a recipe that fits the built-in model."""

import pytest
from common.rows import SETTINGS, Row, all_rows

from vlpress.model.config import ModelConfig
from vlpress.quant.loading import resolve_folder
from vlpress.quant.pipeline import make_plan


@pytest.mark.parametrize("row", all_rows(), ids=lambda row: row.key)
def test_the_recipe_quantizes_what_the_row_says(row: Row) -> None:
    recipe = row.recipe(7, 64)
    assert (recipe.calibration.seed, recipe.calibration.samples) == (7, 64)
    plan = make_plan(ModelConfig.from_folder(resolve_folder("tiny")), recipe)
    decoder = [r for r in plan.quantized if r.name.startswith("model.layers.")]
    tower = [r for r in plan.quantized if r.name.startswith("visual.")]
    assert len(decoder) == 5 * 7
    assert bool(tower) == row.scope.endswith("vision")
    for planned in decoder:
        assert planned.step is not None
        found = planned.step.scheme.to_dict()
        wanted = {"symmetric": True, "activations": "none"} | SETTINGS[row.setting]
        assert {key: found[key] for key in wanted} == wanted
    assert {r.step.method for r in plan.quantized if r.step} == {row.method.split("+")[-1]}


def test_keys_are_distinct() -> None:
    rows = all_rows()
    assert len({row.key for row in rows}) == len(rows)
