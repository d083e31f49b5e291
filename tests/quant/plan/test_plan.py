from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import EACH_FAMILY, prompt, small_config, small_model

from vlpress.calib import tap_groups
from vlpress.calib.statistics import HESSIAN
from vlpress.calib.token_weights import gradient_image_weights
from vlpress.model.config import ModelConfig
from vlpress.model.expert_linear import ExpertLinear
from vlpress.model.families import family_of
from vlpress.model.loading import build_model
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.steps.rtn import RTNStep


def recipe(*steps: dict[str, Any]) -> Recipe:
    base = {"method": "gptq", "bits": 4, "group_size": 32}
    return Recipe.from_dict({"name": "test", "step": [base | step for step in steps or ({},)]})


def config(family: str = "qwen2_5_vl", **overrides: Any) -> ModelConfig:
    return ModelConfig.from_dict(small_config(family, **overrides))


@pytest.mark.parametrize("family", EACH_FAMILY)
@pytest.mark.parametrize("tied", [False, True])
def test_every_linear_has_one_row(family: str, tied: bool) -> None:
    plan = make_plan(config(family, tied=tied), recipe())
    model = build_model(config(family, tied=tied))
    layers = (torch.nn.Linear, ExpertLinear)
    modules = {n for n, m in model.named_modules() if isinstance(m, layers)}
    names = [row.name for row in plan.rows]
    assert len(names) == len(set(names))
    assert set(names) == modules | {"lm_head"}
    assert all(row.fate.startswith(("kept, because ", "gptq int4 g32 sym")) for row in plan.rows)
    assert {row.spec.stage for row in plan.quantized} == {"decoder"}
    of_decoder = [
        spec for spec in family_of(model.config).linears(model.config) if spec.part == "decoder"
    ]
    assert len(plan.quantized) == len(of_decoder)


def test_reasons() -> None:
    plan = make_plan(config(), recipe({"ignore": ["*.1.mlp.*"]}))
    fates = {row.name: row.fate for row in plan.rows}
    assert fates["visual.merger.mlp.0"] == "kept, because no step targets it (merger)"
    assert fates["model.layers.1.mlp.up_proj"] == "kept, because the recipe ignores '*.1.mlp.*'"
    assert fates["lm_head"] == "kept, because it shares its weight with the token embedding"


def test_bytes_add_up() -> None:
    plan = make_plan(config(tied=False), recipe(), dtype=torch.bfloat16, format="gptq")
    model = build_model(config(tied=False))
    assert plan.base_bytes == 2 * sum(p.numel() for p in model.parameters())
    row = next(row for row in plan.rows if row.name == "model.layers.0.self_attn.k_proj")
    # 64 -> 32: integers, scales in fp16 and zero points of two groups, order, bias
    assert row.bytes_before == 2 * (64 * 32 + 32)
    assert row.bytes_after == 64 * 32 // 2 + 2 * 32 * 2 + 2 * 32 // 2 + 64 * 4 + 32 * 2
    assert plan.candidate_bytes == plan.base_bytes - sum(
        r.bytes_before - r.bytes_after for r in plan.rows
    )
    assert 4.5 < plan.bits_per_weight < 6  # narrow layers: the order tensor weighs more
    assert row.packed_bytes == row.bytes_after - 32 * 2


def test_two_steps() -> None:
    plan = make_plan(
        config(),
        recipe({"ignore": ["*.down_proj"]}, {"bits": 8, "targets": ["*layers*.down_proj"]}),
    )
    bits = {row.name: row.step.scheme.bits for row in plan.rows if row.step}
    assert bits["model.layers.0.mlp.down_proj"] == 8
    assert bits["model.layers.0.mlp.up_proj"] == 4


def test_padded_rows_show_both_widths_and_why() -> None:
    tower = recipe({"targets": ["visual.blocks.0.mlp.*"], "bits": 8, "group_size": -1})
    plan = make_plan(config(), tower, dtype=torch.bfloat16)
    rows = {row.name: row for row in plan.rows}
    down, other = rows["visual.blocks.0.mlp.down_proj"], rows["visual.blocks.1.mlp.up_proj"]
    why = "36 padded to 128: kernels need a multiple of 128"
    assert down.fate == f"gptq int8 per row sym; in_features {why}"
    # Kept, but config.json has one width for all blocks.
    assert other.fate == f"kept, because no step targets it (vision); out_features {why}"
    data = down.to_dict()
    assert (data["in_features"], data["source_in_features"]) == (128, 36)
    assert (data["out_features"], data["source_out_features"]) == (32, 32)
    assert (other.bytes_before, other.bytes_after) == (2 * 33 * 36, 2 * 33 * 128)
    assert plan.config.vision.intermediate_size == 128
    assert [p["after"] for p in plan.to_dict()["padding"]] == [128]
    model = build_model(config())
    assert plan.base_bytes == 2 * sum(p.numel() for p in model.parameters())


def test_padding_follows_tp() -> None:
    split = Recipe.from_dict({**recipe().to_dict(), "tp": 2})
    plan = make_plan(config(), split)
    assert plan.config.text.intermediate_size == 256
    assert plan.config.vision.intermediate_size == 36
    assert make_plan(config(), recipe()).padding == ()


def test_newer_names_are_understood() -> None:
    plan = make_plan(config(), recipe({"targets": ["model.language_model.layers.*"]}))
    assert len(plan.quantized) == 14


def test_memory_grows_with_the_widest_layer() -> None:
    small = make_plan(config(), recipe()).memory
    wide = make_plan(config(intermediate_size=512), recipe()).memory
    assert wide.solve > 4 * small.solve
    waiting = 1010 * small.states_per_token + 1000 * small.inner_per_token
    assert small.peak(1000, 10, 10**9) == (
        small.block + small.solve + 1000 * small.patches_per_token + waiting
    )
    assert small.peak(1000, 10, 5) == (
        small.block + small.solve + 1000 * small.patches_per_token + 5
    )
    assert small.scratch(1000) == 1000 * (2 * small.states_per_token + small.inner_per_token)
    # a token of an image: 4 float32 patches; input of a block 4 x 32 features of the vision
    # tower (and 4 x 16 float32 angles) or 64 of the decoder (and 16 angles)
    assert small.patches_per_token == 4 * 4 * 1176
    assert small.states_per_token == max(4 * 4 * (32 + 16), 4 * (64 + 16))
    # in front of a decoder block's last layer: what it reads and what it is added to
    assert small.inner_per_token == 4 * (64 + 128)


def test_a_block_or_the_embedding_is_held() -> None:
    layer = 4 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 128 * 64)
    assert make_plan(config(), recipe()).memory.block == layer
    assert make_plan(config(vocab_size=4096), recipe()).memory.block == 4 * 4096 * 64
    rounded = make_plan(config(vocab_size=4096), recipe({"method": "rtn"})).memory
    assert rounded.block == layer
    assert rounded.states_per_token == rounded.patches_per_token == 0


@pytest.mark.parametrize("true_sequential", [True, False])
def test_memory_does_not_grow_with_the_number_of_experts(
    true_sequential: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = recipe().to_dict()
    everything["calibration"]["true_sequential"] = true_sequential

    def solve(experts: int) -> int:
        of_model = config("qwen3_vl_moe", num_experts=experts)
        solve = make_plan(of_model, Recipe.from_dict(everything)).memory.solve
        # A byte for each solved weight, and dequantized weights of gate and up.
        return solve - experts * (3 + 2 * 4) * 64 * 96

    per_expert = {True: HESSIAN.memory(96), False: HESSIAN.memory(64) + HESSIAN.memory(96)}
    size = per_expert[true_sequential]
    assert solve(64) - solve(32) == 32 * size
    monkeypatch.setattr(tap_groups, "OBSERVED_BYTES", 16 * size)
    assert solve(64) == solve(32) == solve(16) < 32 * size


def test_memory_of_gradients_is_what_autograd_keeps() -> None:
    """On a model whose activations dominate; the gradients of the outputs are added."""
    raw = small_config(hidden_size=256, intermediate_size=512, num_attention_heads=16)
    model = small_model(raw | {"vision_config": raw["vision_config"] | {"out_hidden_size": 256}})
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no address is given out again

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    sample = prompt(model.config, [(1, 4, 4)], 120, 0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        gradient_image_weights(model, [sample])
    outputs = model.config.text.num_hidden_layers * 256 * 4
    saved_bytes = sum(sizes.values()) / len(sample) + outputs
    gradient_recipe = Recipe.from_dict(
        recipe().to_dict() | {"calibration": {"token_weights": "gradient"}},
    )
    memory = make_plan(model.config, gradient_recipe).memory
    assert 0.9 * saved_bytes < memory.gradient_per_token < 1.1 * saved_bytes
    assert memory.peak(10, 10**6, 0) == (
        memory.whole + 10 * memory.patches_per_token + 10**6 * memory.gradient_per_token
    )
    plain = make_plan(model.config, recipe()).memory
    assert plain.whole == plain.gradient_per_token == 0
    rounded = replace(gradient_recipe, steps=(RTNStep(QuantScheme(4, 32)),))
    assert make_plan(model.config, rounded).memory.gradient_per_token == 0


@pytest.mark.parametrize(("width", "bits", "multiple"), [(48, 4, 32), (48, 3, 32), (40, 8, 16)])
def test_widths_that_formats_cannot_hold_are_refused(width: int, bits: int, multiple: int) -> None:
    step = {"targets": ["visual.*.qkv"], "bits": bits, "group_size": -1}
    message = rf"qkv: in_features {width} is not a multiple of {multiple}, .* {bits} bits"
    with pytest.raises(ValueError, match=message):
        make_plan(with_tower_width(width), recipe(step))


def test_eight_bits_need_a_multiple_of_16() -> None:
    step = {"targets": ["visual.*.qkv"], "bits": 8, "group_size": -1}
    plan = make_plan(with_tower_width(48), recipe(step))
    assert {row.spec.in_features for row in plan.quantized} == {48}


def with_tower_width(width: int) -> ModelConfig:
    raw = small_config("qwen2_5_vl")
    return ModelConfig.from_dict(
        raw | {"vision_config": raw["vision_config"] | {"hidden_size": width}}
    )


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"targets": ["model.layer.*"]}, r"target 'model.layer.\*' matches no linear layer"),
        (
            {"ignore": ["model.layers.0.mlp.down_projx"]},
            r"ignore pattern .* matches no .*; near are model\.layers\.0\.mlp\.down_proj",
        ),
        ({"targets": ["zzz"]}, r"near are visual\.blocks\.\*\.attn\.qkv"),
        ({"ignore": ["*"]}, "every targeted layer is ignored"),
        (
            {"group_size": 48},
            r"layers\.0\.self_attn\.q_proj: in_features 64 does not divide into groups of 48; "
            "group_size 64 fits all layers",
        ),
        (
            {"targets": ["visual.merger.*", "visual.*.qkv"], "group_size": 64},
            r"visual\.blocks\.0\.attn\.qkv: in_features 32 .* group_size 32 fits all layers",
        ),
        (
            {"ignore": ["*.k_proj"]},
            r"engines fuse these layers into one matrix, which has one scheme.*k_proj: kept",
        ),
        ({"targets": ["visual.*.gate_proj"]}, r"engines fuse .*mlp\.up_proj: kept"),
    ],
)
def test_rejects(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make_plan(config(), recipe(step))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_rounded_activations_have_a_kernel(activations: str) -> None:
    plan = make_plan(config(), recipe({"activations": activations}))
    assert plan.quantized[0].fate == f"gptq int4 g32 sym + int8 {activations} activations"


def test_transforms_are_in_the_plan() -> None:
    smooth = {"method": "smoothquant"}
    steps = [smooth, {"method": "rtn", "bits": 4, "group_size": 32}]
    plan = make_plan(config(), Recipe.from_dict({"name": "test", "step": steps}))
    assert len(plan.transforms) == 8  # two norms and two pairs in each of two layers
    first = plan.to_dict()["transforms"][0]
    assert first == {
        "method": "smoothquant",
        "source": "model.layers.0.input_layernorm",
        "linears": [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"],
        "left_alone": None,
    }
    assert plan.memory.solve > 0  # rounded layers are judged by their Hessians


def test_two_steps_must_not_claim_one_layer() -> None:
    with pytest.raises(ValueError, match="targeted by two steps"):
        make_plan(config(), recipe({}, {"bits": 8, "targets": ["*layers*.down_proj"]}))


def test_dict_is_json() -> None:
    import json

    data = make_plan(config(), recipe()).to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["rows"][-1]["name"] == "lm_head"
