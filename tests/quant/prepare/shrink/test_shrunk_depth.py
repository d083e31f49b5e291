import copy
from typing import Any

import pytest
from tiny_models import make_tiny_config, small_config

from vlpress.model.config import ModelConfig
from vlpress.quant.prepare.shrink.layers import foresee_layers, layer_period, new_name
from vlpress.quant.steps.shrink import ShrinkStep

LINEAR, FULL = "linear_attention", "full_attention"


def config_of(family: str = "qwen2_5_vl", **text: Any) -> ModelConfig:
    return ModelConfig.from_dict(small_config(family, **text))


@pytest.mark.parametrize("nested", [False, True])
def test_config_has_fewer_layers_and_keeps_its_form(nested: bool) -> None:
    types = {"layer_types": [FULL] * 3} if nested else {}
    config = make_tiny_config(nested=nested, text=types)
    before = copy.deepcopy(dict(config.raw))
    foreseen = foresee_layers(config, ShrinkStep(layers=2))
    assert config.raw == before
    text = before["text_config"] if nested else before
    text["num_hidden_layers"] = 2
    if nested:
        text["layer_types"] = [FULL] * 2
    assert foreseen.config.raw == before
    assert foreseen.summary == "decoder layers: 3 to 2 (by influence)"


def test_types_are_listed_for_the_layers_that_stay() -> None:
    config = config_of("qwen3_5", num_hidden_layers=4)
    assert config.text.layer_types == (LINEAR, FULL, LINEAR, FULL)
    foreseen = foresee_layers(config, ShrinkStep(drop_layers=(1, 2)))
    assert foreseen.config.raw["text_config"]["layer_types"] == [LINEAR, FULL]
    uneven = foresee_layers(config, ShrinkStep(drop_layers=(2,)))
    assert uneven.config.text.layer_types == (LINEAR, FULL, FULL)
    assert uneven.summary == "decoder layers: 4 to 3 (without 2)"


def test_period_of_the_types() -> None:
    assert layer_period(config_of()) == 1
    assert layer_period(config_of("qwen3_5", num_hidden_layers=4)) == 2
    uneven = config_of("qwen3_5", num_hidden_layers=3, layer_types=[LINEAR, FULL, FULL])
    assert layer_period(uneven) == 3


@pytest.mark.parametrize(
    ("family", "text", "options", "message"),
    [
        ("qwen2_5_vl", {}, {"layers": 2}, "layers is 2; allowed for this model of 2 layers: 1 to"),
        ("qwen3_vl", {}, {"layers": 1}, "layers is 1; allowed .* 2 to 2"),
        ("qwen3_vl", {}, {"drop_layers": (1,)}, r"drop_layers has 1; allowed: 2 to 2 \(2 layers"),
        ("qwen2_5_vl", {}, {"drop_layers": (5,)}, "drop_layers has 5; allowed: 0 to 1"),
        (
            "qwen3_5",
            {"num_hidden_layers": 4},
            {"layers": 3},
            "allowed for this model of 4 layers: 2 to 2, a multiple of 2 as the types",
        ),
        (
            "qwen3_5",
            {"num_hidden_layers": 3, "layer_types": [LINEAR, FULL, FULL]},
            {"layers": 2},
            "repeat no pattern; name the layers to drop in drop_layers",
        ),
        (
            "qwen3_5",
            {"num_hidden_layers": 4},
            {"drop_layers": (1, 3)},
            "leaves no layer of the type full_attention",
        ),
        ("qwen2_5_vl", {}, {"drop_layers": (0, 1)}, "leaves no layer of the type full_attention"),
    ],
)
def test_layers_that_must_stay(
    family: str, text: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        foresee_layers(config_of(family, **text), ShrinkStep(**options))


def test_layers_are_renumbered_and_other_tensors_keep_their_names() -> None:
    config, dropped = config_of(num_hidden_layers=12), (2, 10)
    names = {
        "model.layers.1.mlp.up_proj.weight": "model.layers.1.mlp.up_proj.weight",
        "model.layers.2.mlp.up_proj.weight": None,
        "model.layers.3.self_attn.q_proj.bias": "model.layers.2.self_attn.q_proj.bias",
        "model.layers.10.input_layernorm.weight": None,
        "model.layers.11.input_layernorm.weight": "model.layers.9.input_layernorm.weight",
        "visual.blocks.2.norm1.weight": "visual.blocks.2.norm1.weight",
        "mtp.layers.2.norm.weight": "mtp.layers.2.norm.weight",
        "model.norm.weight": "model.norm.weight",
    }
    assert {name: new_name(name, config, dropped) for name in names} == names
