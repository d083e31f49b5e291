"""A recipe that shrinks and then quantizes, from its plan to the checkpoint."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_models import small_config
from typer.testing import CliRunner

import vlpress
from vlpress.cli import main
from vlpress.model.carried import CarriedTensors
from vlpress.model.config import ModelConfig
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.steps.shrink import ShrinkStep

RECIPE = """
[[step]]
method = "shrink"
width = "mlp"
keep = 0.5
[[step]]
method = "shrink"
layers = 2
[[step]]
method = "gptq"
bits = 4
group_size = 32
"""
OPTIONS: dict[str, Any] = {"device": "cpu", "calib_samples": 2}


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return str(tmp_path / "recipe.toml")


def test_result_is_as_planned(checkpoint: Path, tmp_path: Path, recipe: str) -> None:
    config = ModelConfig.from_folder(checkpoint)
    plan = make_plan(config, Recipe.resolve(recipe), folder=checkpoint)
    width, depth = plan.preparations
    assert width.summary == "MLP channels: decoder 256 to 128 (by wanda, refitted)"
    assert depth.summary == "decoder layers: 3 to 2 (by influence)"
    assert plan.base_bytes == width.bytes_before
    assert width.bytes_before - width.bytes_after == 3 * 3 * 128 * 128 * 4
    result = vlpress.quantize(checkpoint, tmp_path / "out", recipe=recipe, **OPTIONS)
    assert result["bytes"] == plan.candidate_bytes < depth.bytes_after
    names = [layer["name"] for layer in result["layers"]]
    assert len(names) == 2 * 7 and names[-1] == "model.layers.1.mlp.down_proj"
    text = ModelConfig.from_folder(tmp_path / "out").text
    assert (text.intermediate_size, text.num_hidden_layers) == (128, 2)
    record = json.loads((tmp_path / "out" / "vlpress.json").read_text())["preparations"]
    assert [len(record[0]["blocks"]), len(record[1]["influence"])] == [3, 3]
    assert len(record[1]["dropped"]) == 1


def test_refusals_are_one_line(checkpoint: Path, tmp_path: Path, recipe: str) -> None:
    Path(recipe).write_text(RECIPE.replace("layers = 2", "layers = 3"))
    command = ["quantize", str(checkpoint), "-o", str(tmp_path / "out"), "--recipe", recipe]
    shown = CliRunner().invoke(main.app, command)
    assert shown.exit_code == 2
    assert "layers is 3; allowed for this model of 3 layers: 1 to 2" in " ".join(
        shown.stderr.split()
    )
    assert not (tmp_path / "out").exists()


def test_plan_counts_the_module_for_multi_token_prediction(tmp_path: Path) -> None:
    config = ModelConfig.from_dict(small_config("qwen3_5", mtp_num_hidden_layers=1))
    carried = CarriedTensors({"mtp.layers.0.mlp.down_proj.weight": 8192, "mtp.norm.weight": 64})
    step = ShrinkStep(width="mlp", keep=0.5, multiple=16)
    narrower = step.foresee_carried(config, carried)
    assert narrower.bytes == {"mtp.layers.0.mlp.down_proj.weight": 4096, "mtp.norm.weight": 64}
    assert ShrinkStep(layers=1).foresee_carried(config, carried) == carried
