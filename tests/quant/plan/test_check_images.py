"""Text-only samples with recipes that quantize the vision tower."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import prompt, small_config, small_model
from typer.testing import CliRunner

from vlpress.cli.main import app
from vlpress.model.config import ModelConfig
from vlpress.quant.driver.pipeline import make_plan, quantize_
from vlpress.quant.plan.plan import check_images
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.targets import quantized_layers

TOWER = {"targets": ["visual.blocks.*", "visual.merger.*"]}
ROWS = {"bits": 8, "group_size": -1}
DECODER = {"method": "gptq", "bits": 4, "group_size": 32}
NEEDY: dict[str, list[dict[str, Any]]] = {
    "solved": [TOWER | ROWS | {"method": "gptq"}],
    "static": [TOWER | ROWS | {"method": "rtn", "activations": "static"}],
    "smoothed": [
        TOWER | {"method": "smoothquant"},
        TOWER | ROWS | {"method": "rtn", "activations": "dynamic"},
    ],
    "scaled": [TOWER | {"method": "awq", "points": 4}, TOWER | ROWS | {"method": "rtn"}],
    "with the decoder": [TOWER | ROWS | {"method": "gptq"}, DECODER],
}
MODEST: dict[str, list[dict[str, Any]]] = {
    "rounded": [TOWER | ROWS | {"method": "rtn"}],
    "dynamic": [TOWER | ROWS | {"method": "rtn", "activations": "dynamic"}],
    "with the decoder": [TOWER | ROWS | {"method": "rtn"}, DECODER],
    "with a smoothed decoder": [
        {"method": "smoothquant"},
        TOWER | ROWS | {"method": "rtn"},
        DECODER | {"activations": "dynamic"},
    ],
}


def recipe(steps: list[dict[str, Any]]) -> Recipe:
    return Recipe.from_dict({"step": steps})


@pytest.mark.parametrize("name", NEEDY)
def test_refused_before_any_work(name: str) -> None:
    model = small_model()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    texts = [prompt(model.config, [], 20, seed) for seed in range(3)]
    message = r"image.* visual\.blocks\.0\.\S+ and \d+ more"
    with pytest.raises(ValueError, match=message) as caught:
        quantize_(model, recipe(NEEDY[name]), texts)
    assert "\n" not in str(caught.value)
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NEEDY)
def test_one_image_is_enough(name: str) -> None:
    model = small_model()
    samples = [prompt(model.config, [], 20, 1), prompt(model.config, [(1, 8, 8)], 12, 2)]
    quantize_(model, recipe(NEEDY[name]), samples)
    assert any(layer.startswith("visual") for layer in quantized_layers(model))


@pytest.mark.parametrize("name", MODEST)
def test_rounded_layers_need_no_image(name: str) -> None:
    """The result is the same as with images, and the decoder is calibrated."""
    model, seeing = small_model(), small_model()
    texts = [prompt(model.config, [], 40, seed) for seed in range(3)]
    report = quantize_(model, recipe(MODEST[name]), texts)
    quantize_(seeing, recipe(MODEST[name]), [*texts, prompt(model.config, [(1, 8, 8)], 12, 2)])
    layers, others = quantized_layers(model), quantized_layers(seeing)
    assert layers.keys() == others.keys()
    for layer in (name for name in layers if name.startswith("visual")):
        assert layers[layer].quantized().equals(others[layer].quantized())
    tokens = {row.row.name: row.tokens for row in report.layers}
    assert list(tokens) == [row.name for row in report.plan.quantized]
    for layer, count in tokens.items():
        assert (count > 0) == layer.startswith("model")


def test_a_transform_outside_the_tower_needs_no_image() -> None:
    config = ModelConfig.from_dict(small_config("qwen2_vl"))
    fc2 = {"targets": ["visual.blocks.*.mlp.fc2"]}
    plan = make_plan(config, recipe([fc2 | ROWS | {"method": "rtn"}]))
    check_images(plan, present=False)
    plan = make_plan(config, recipe([fc2 | ROWS | {"method": "gptq"}]))
    check_images(plan, present=True)
    with pytest.raises(ValueError, match=r"visual\.blocks\.0\.mlp\.fc2 and 1 more"):
        check_images(plan, present=False)


def test_the_command_fails_before_it_loads_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "vlpress.quant.resolve.open_model", lambda *args, **kwargs: pytest.fail("loaded")
    )
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"question": "What is two and two?", "answer": "Four."}) + "\n")
    arguments = ["quantize", "tiny", "-r", "vision-w8a8+decoder-w4a16", "--calib", str(texts)]
    result = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "no calibration sample has an image, and visual.blocks.0.attn.qkv" in result.output
    assert not (tmp_path / "out").exists()
