"""Groups, their choices, and bytes against those of plans."""

from __future__ import annotations

import random
import re
from typing import Any

import pytest
from tiny_models import EACH_FAMILY, make_tiny_config, small_config

from vlpress.model.carried import CarriedTensors
from vlpress.model.config import ModelConfig
from vlpress.model.families import EMBEDDING, family_of
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.search.budget import Budget, find_best
from vlpress.quant.search.space import SearchSpace, masks_by
from vlpress.quant.search.steps import recipe_data


def config(family: str = "qwen2_5_vl", *, tied: bool = False) -> ModelConfig:
    return make_tiny_config(family, tied=tied, dtype="bfloat16")


def random_losses(space: SearchSpace, seed: int) -> list[list[float]]:
    rng = random.Random(seed)
    return [[rng.random() for _ in group.choices] for group in space.groups]


@pytest.mark.parametrize("family", EACH_FAMILY)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tp", [1, 2])
def test_bytes_are_those_of_the_plan_of_the_recipe(family: str, tied: bool, tp: int) -> None:
    model = config(family, tied=tied)
    if family.endswith("_moe") and tp == 2:  # 48 inputs on each device
        with pytest.raises(ValueError, match=r"experts\.0\.gate_proj .* no scheme"):
            SearchSpace.of(model, tp)
        return
    space = SearchSpace.of(model, tp)
    for seed in range(3):
        solution = find_best(space, random_losses(space, seed), Budget())
        data = recipe_data(
            "found",
            space.prepared,
            space.groups,
            solution.choices(space),
            samples=4,
            seed=0,
            tp=tp,
        )
        plan = make_plan(model, Recipe.from_dict(data))
        assert plan.format == "compressed-tensors"
        assert plan.candidate_bytes == solution.bytes
        schemes = {row.name: row.step.scheme if row.step else None for row in plan.rows}
        for group, choice in zip(space.groups, solution.choices(space), strict=True):
            for spec, scheme in zip(group.layers, choice.schemes, strict=True):
                assert schemes.get(spec.name) == scheme, spec.name
        decoder = [row for row in plan.quantized if row.spec.part == "decoder"]
        bits = 8 * sum(row.packed_bytes for row in decoder)
        assert solution.bits == pytest.approx(bits / sum(row.spec.weights for row in decoder))


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_every_layer_is_in_one_group_and_fused_layers_share_it(family: str) -> None:
    space = SearchSpace.of(config(family, tied=True))
    names = [spec.name for group in space.groups for spec in group.layers]
    expected = {spec.name for spec in family_of(space.prepared).targets(space.prepared)}
    assert len(names) == len(set(names)) and set(names) == expected
    groups = {spec.name: group.name for group in space.groups for spec in group.layers}
    first = f"model.layers.{space.prepared.text.cached_layers[0]}.self_attn"
    assert groups[f"{first}.q_proj"] == groups[f"{first}.v_proj"] != groups[f"{first}.o_proj"]
    if family == "qwen3_5":
        linear = "model.layers.0.linear_attn"
        assert groups[f"{linear}.in_proj_qkv"] == groups[f"{linear}.in_proj_z"]
    if family.endswith("_moe"):
        experts = "model.layers.1.mlp.experts"
        assert groups[f"{experts}.0.up_proj"] == groups[f"{experts}.5.down_proj"] == experts
    assert space.groups[0].name == EMBEDDING


def labels(space: SearchSpace, name: str) -> list[str]:
    (group,) = [group for group in space.groups if group.name == name]
    return [choice.label for choice in group.choices]


def test_a_tied_head_is_chosen_together_with_the_embedding() -> None:
    assert labels(SearchSpace.of(config(tied=True)), EMBEDDING) == [
        "float, tied",
        "int4 g128 sym + head int8 g128 sym",
        "int4 g128 sym + head float",
        "int8 g128 sym + head int8 g128 sym",
        "int8 g128 sym + head float",
        "float + head int8 g128 sym",
    ]
    untied = SearchSpace.of(config())
    assert labels(untied, EMBEDDING) == ["int4 g128 sym", "int8 g128 sym", "float"]
    assert labels(untied, "lm_head") == ["int8 g128 sym", "float"]


def test_schemes_that_do_not_fit_are_left_out() -> None:
    space = SearchSpace.of(ModelConfig.from_dict(small_config()))  # 64 wide
    assert labels(space, "model.layers.0.self_attn.o_proj") == [
        "int2 g32 sym",
        "int3 g32 sym",
        "int4 g32 sym",
    ]
    assert labels(space, "model.layers.0.mlp.down_proj")[1] == "int3 g128 sym"
    assert labels(space, EMBEDDING) == ["float, tied"]


def test_a_decoder_that_no_scheme_fits_is_refused() -> None:
    raw: dict[str, Any] = small_config(num_attention_heads=3, num_key_value_heads=1)
    raw |= {"hidden_size": 48, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    raw["vision_config"]["out_hidden_size"] = 48
    with pytest.raises(ValueError, match=r"q_proj is 48 x 48, which no scheme .* group_size -1"):
        SearchSpace.of(ModelConfig.from_dict(raw))


def test_float_layers_grow_if_another_block_is_padded() -> None:
    space = SearchSpace.of(config())
    (padding,) = space.padding
    without, with_padding = space.choice_bytes(()), space.choice_bytes((padding,))
    for group, before, after in zip(space.groups, without, with_padding, strict=True):
        is_padded = group.name.startswith("visual.blocks.") and ".mlp." in group.name
        assert (None in before) == is_padded and None not in after
        if is_padded:
            assert before[:-1] == [None, None]
            wider = sum(spec.weights for spec in group.layers) * 2
            biases = sum(spec.out_features for spec in group.layers) * 2
            assert after[-1] == wider + biases > (before[-1] or 0)
        else:
            assert before == after


def test_tensors_that_the_model_does_not_compute_with_count() -> None:
    plain, carrying = (
        SearchSpace.of(config("qwen3_5"), 1, CarriedTensors(sizes))
        for sizes in ({}, {"mtp.fc.weight": 700, "mtp.norm.weight": 50})
    )
    assert carrying.fixed_bytes == plain.fixed_bytes + 750
    assert carrying.groups == plain.groups


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl_moe"])
def test_masks_have_a_budget_of_kept_weights(family: str) -> None:
    masks = masks_by("wanda")
    model = config(family)
    space = SearchSpace.of(model, masks=masks)
    decoder = [group for group in space.groups if group.part == "decoder"]
    assert all(
        choice.mask is None for g in space.groups if g not in decoder for choice in g.choices
    )
    assert {choice.mask for group in decoder for choice in group.choices} == set(masks)
    losses = [
        [
            random.Random(n).random() + (1 - float(choice.mask.keep) if choice.mask else 0)
            for choice in g.choices
        ]
        for n, g in enumerate(space.groups)
    ]
    solution = find_best(space, losses, Budget(keep=0.5))
    assert 0.45 < solution.kept <= 0.5
    data = recipe_data(
        "found", space.prepared, space.groups, solution.choices(space), samples=4, seed=0, tp=1
    )
    plan = make_plan(model, Recipe.from_dict(data))
    assert plan.candidate_bytes == solution.bytes
    steps = {row.name: row.step for row in plan.rows}
    kept = weights = 0
    for group, choice in zip(space.groups, solution.choices(space), strict=True):
        for spec in group.layers:
            step = steps.get(spec.name)
            assert (step.mask if step else None) == choice.mask, spec.name
            if group.part == "decoder":
                columns = choice.mask.kept(spec.in_features) if choice.mask else spec.in_features
                kept, weights = kept + spec.out_features * columns, weights + spec.weights
    assert solution.kept == kept / weights
    with pytest.raises(ValueError, match=r"--keep 0\.1 is too low; .* 0\.\d{4}") as error:
        find_best(space, losses, Budget(keep=0.1))
    smallest = float(re.findall(r"0\.\d{4}", str(error.value))[0])
    assert 0.19 < smallest < 0.22
