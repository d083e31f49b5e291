from typing import Any

import pytest
from tiny_models import small_config

from vlpress.model.config import ModelConfig
from vlpress.model.families import family_of
from vlpress.quant.plan.channel_groups import PlannedTransform, plan_transforms
from vlpress.quant.plan.target_matching import claim_layers
from vlpress.quant.recipe.recipe import Recipe

ROUND = {"method": "rtn", "bits": 8, "group_size": -1}


def plan(
    *transforms: dict[str, Any], family: str = "qwen2_5_vl", **step: Any
) -> tuple[PlannedTransform, ...]:
    config = ModelConfig.from_dict(small_config(family, tied=False))
    recipe = Recipe.from_dict({"name": "mine", "step": [*transforms, ROUND | step]})
    claims = claim_layers(family_of(config).linears(config), recipe)
    schemes = {name: step.scheme for name, (step, _) in claims.items() if step is not None}
    return plan_transforms(config, recipe, schemes)


def sources(rows: tuple[PlannedTransform, ...], prefix: str) -> list[str]:
    return [row.source.removeprefix(prefix) for row in rows if row.source.startswith(prefix)]


def test_decoder_by_default() -> None:
    rows = plan({"method": "smoothquant"})
    expected = ["input_layernorm", "post_attention_layernorm", "self_attn.v_proj", "mlp.up_proj"]
    assert sources(rows, "model.layers.1.") == expected
    assert {row.block for row in rows} == {"model.layers.0", "model.layers.1"}
    assert all(not row.reason for row in rows)
    assert rows[2].linears == ("model.layers.0.self_attn.o_proj",)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("qwen2_vl", ["norm1", "norm2", "attn.qkv"]),
        ("qwen2_5_vl", ["norm1", "norm2", "attn.qkv", "mlp.up_proj"]),
    ],
)
def test_vision_and_merger(family: str, expected: list[str]) -> None:
    everything = {"targets": ["visual.*"]}
    rows = plan({"method": "awq", **everything}, family=family, **everything)
    assert sources(rows, "visual.blocks.0.") == expected
    assert sources(rows, "visual.merger.") == ["ln_q"]


def test_all_readers_of_a_source_go_together() -> None:
    rows = plan({"method": "smoothquant", "targets": ["model.layers.0.mlp.gate_proj"]})
    assert [row.source for row in rows] == ["model.layers.0.post_attention_layernorm"]
    ignoring = plan({"method": "smoothquant", "ignore": ["*.k_proj", "*.down_proj"]})
    assert sources(ignoring, "model.layers.0.") == ["post_attention_layernorm", "self_attn.v_proj"]


def test_newer_names_are_understood() -> None:
    targets = ["model.language_model.layers.1.*"]
    rows = plan({"method": "smoothquant", "targets": targets})
    assert {row.block for row in rows} == {"model.layers.1"}


def test_bindings_without_a_quantized_reader_say_so() -> None:
    rows = plan({"method": "smoothquant"}, ignore=["*.down_proj"])
    left = {row.source: row.reason for row in rows if row.reason}
    assert left == {
        f"model.layers.{i}.mlp.up_proj": "no step quantizes its readers" for i in range(2)
    }
    assert rows[3].to_dict()["left_alone"] == "no step quantizes its readers"


def test_several_transforms_keep_their_order() -> None:
    rows = plan({"method": "awq"}, {"method": "smoothquant"})
    assert [row.transform.method for row in rows] == ["awq"] * 8 + ["smoothquant"] * 8


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            {"targets": ["visual.blocks.*.fc1"]},
            r"smoothquant target 'visual\.blocks\.\*\.fc1' matches no layer whose input can be",
        ),
        ({"targets": ["lm_head"]}, r"'lm_head' .*near are"),
        ({"targets": ["visual.merger.mlp.2"]}, r"near are visual\.merger\.mlp\.0"),
        ({"ignore": ["*.down_projx"]}, r"smoothquant ignore pattern '\*\.down_projx' matches no"),
        (
            {"targets": ["visual.*"]},
            r"recipe mine: smoothquant has nothing to do: .*'visual\.\*'.* no step quantizes",
        ),
        ({"ignore": ["*_proj"]}, "smoothquant has nothing to do"),
    ],
)
def test_rejects(transform: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        plan({"method": "smoothquant", **transform})
    assert "\n" not in str(caught.value)


def test_a_fixed_alpha_fits_weights_of_any_kind() -> None:
    table = {"method": "rtn", "grid": "nvfp4", "activations": "dynamic"}
    config = ModelConfig.from_dict(small_config())
    for alpha in (0.5, "search"):
        smooth = {"method": "smoothquant", "alpha": alpha}
        recipe = Recipe.from_dict({"name": "mine", "step": [smooth, table]})
        claims = claim_layers(family_of(config).linears(config), recipe)
        schemes = {name: step.scheme for name, (step, _) in claims.items() if step is not None}
        if alpha == "search":
            with pytest.raises(ValueError, match="or take smoothquant with a fixed alpha"):
                plan_transforms(config, recipe, schemes)
        else:
            assert all(not row.reason for row in plan_transforms(config, recipe, schemes))
