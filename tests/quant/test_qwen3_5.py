"""Quantization rules of Qwen3.5: rows with two uses, two kinds of layers, kept layers."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from sequential_runs import run_sequential
from tiny_models import prompt, prompts, small_config, small_model, write_small_checkpoint
from torch import Tensor

from vlpress.calib.sequential import CalibrationBlock
from vlpress.model.families import family_of
from vlpress.model.loading import build_model
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.formats.patterns import excluding_patterns
from vlpress.quant.driver.pipeline import load_quantized, quantize_, save_quantized
from vlpress.quant.driver.scaling import awq_scaling
from vlpress.quant.driver.scaling.transforms import BlockTransforms
from vlpress.quant.methods.awq import AWQResult, awq_scales
from vlpress.quant.methods.layer_error import split_rows
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.targets import compressed_layers, weight_of

INT4 = {"method": "rtn", "bits": 4, "group_size": 32}
EXPERTS = {"ignore": ["*.mlp.experts.*"]}


def recipe(*steps: dict[str, Any]) -> Recipe:
    return Recipe.from_dict({"name": "test", "step": list(steps)})


def logits(model: QwenVL) -> Tensor:
    with torch.no_grad():
        return torch.cat(model(prompts(model.config)))


def test_row_parts_are_the_queries_and_the_gates() -> None:
    """Without its gate rows a layer gives half of its attention: the sigmoid of 0."""
    model = small_model(small_config("qwen3_5"))
    specs = {spec.name: spec for spec in family_of(model.config).linears(model.config)}
    path = "model.layers.1.self_attn"
    spec = specs[f"{path}.q_proj"]
    assert spec.row_parts == (32, 32)
    seen: list[Tensor] = []
    reader = model.get_submodule(f"{path}.o_proj")
    reader.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    queries, gates = split_rows([weight_of(model, spec)], [spec.row_parts])
    assert len(queries[0]) == len(gates[0]) == 4 * 32
    weight = model.get_parameter(f"{path}.q_proj.weight")
    rows = weight.data.view(4, 2, 32, -1)
    sample = prompts(model.config)[:1]
    with torch.no_grad():
        rows[:, 1] = 0
        model(sample)
        without_gates = seen.pop()
        rows[:, 1] = 1e3  # gates of one sign per token and channel, saturated
        model(sample)
    gated = seen.pop()
    full = gated.abs() > 1e-6
    assert bool(full.any())
    assert not bool(full.all())
    torch.testing.assert_close(gated[full], 2 * without_gates[full], rtol=1e-4, atol=1e-6)


def test_awq_scores_rows_of_different_uses_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(small_config("qwen3_5"))
    given: dict[tuple[int, ...], list[tuple[int, ...]]] = {}

    def record(weights: Sequence[Tensor], *args: Any, **options: Any) -> AWQResult:
        given[tuple(len(weight) for weight in weights)] = options["row_parts"]
        return awq_scales(weights, *args, **options)

    monkeypatch.setattr(awq_scaling, "awq_scales", record)
    targets = {"targets": ["*.layers.0.linear_attn.in*", "*.layers.1.self_attn.q_proj"]}
    report = quantize_(
        model, recipe({"method": "awq", "points": 2, **targets}, INT4), prompts(model.config)
    )
    # Queries, keys and values of linear attention with their gate; the other kind's queries with
    # their gates, and keys and values, which count as one.
    assert given == {(96, 64): [(16, 16, 64), ()], (256, 64, 64): [(32, 32), (), ()]}
    assert [len(row.planned.linears) for row in report.transforms] == [4, 3]


def wide_norms(model: QwenVL) -> QwenVL:
    """Norm weights around zero, as published ones are; some channels are nearly switched off."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if name.endswith(("layernorm.weight", "model.norm.weight")):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) / 3)
            parameter.data[:2] = torch.tensor([-1 + 2**-7, -1.5])
    return model


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("qwen3_5", "smoothquant"),
        ("qwen3_5", "awq"),
        ("qwen3_5_moe", "smoothquant"),
        ("qwen3_5_moe", "awq"),
    ],
)
def test_scaling_leaves_the_float_function(family: str, method: str) -> None:
    """Every binding of both kinds of layers, with norms that are stored in bf16."""
    raw = small_config(family) | {"torch_dtype": "bfloat16"}
    raw["text_config"]["dtype"] = "bfloat16"
    model, original = (wide_norms(small_model(raw, dtype=torch.bfloat16)).float() for _ in "ab")
    options = {"points": 3} if method == "awq" else {"alpha": 0.5}
    ignored = EXPERTS if family.endswith("moe") else {}
    steps = recipe({"method": method, **options, **ignored}, INT4 | ignored)
    plan = make_plan(model.config, steps)
    transforms = BlockTransforms(model, plan, model.device)

    def prepare(view: CalibrationBlock) -> None:
        transforms.prepare(view)

    run_sequential(
        model,
        prompts(model.config),
        [row.spec for row in plan.quantized],
        lambda group, hessian, _: None,
        prepare=prepare,
    )
    folded = {r.planned.source for r in transforms.reports if r.scales is not None}
    expected = {
        f"model.layers.{layer}.{source}"
        for layer, kind in enumerate(model.config.text.layer_types)
        for source in (
            "input_layernorm",
            "linear_attn.norm" if kind == "linear_attention" else "self_attn.v_proj",
            *(["mlp.shared_expert.up_proj"] if ignored else ["mlp.up_proj"]),
            *([] if ignored else ["post_attention_layernorm"]),
        )
    }
    assert folded == expected if method == "smoothquant" else folded <= expected
    assert len(folded) >= len(expected) // 2
    for name in transforms.changed:
        value = model.get_parameter(name).data
        assert torch.equal(value, value.to(torch.bfloat16).float()), name
    actual, before = logits(model), logits(original)
    # Weights of in_proj_a and in_proj_b are rounded to bf16 one by one after they were scaled.
    assert float((actual - before).norm() / before.norm()) < 3e-3


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
def test_solvers_beat_rounding_on_the_outputs_of_every_layer(method: str) -> None:
    model = small_model(small_config("qwen3_5"))
    report = quantize_(model, recipe(INT4 | {"method": method}), prompts(model.config))
    seen = set()
    for layer in report.layers:
        assert layer.final_error is not None
        assert layer.rtn_error is not None
        assert layer.final_error < 0.9 * layer.rtn_error, layer.row.name
        seen.add(layer.row.name.split(".", 3)[3])
    assert seen == {
        *(f"linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "out_proj")),
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    }


def test_what_is_never_quantized_has_a_row_or_is_no_linear_layer() -> None:
    config = small_model(small_config("qwen3_5_moe")).config
    plan = make_plan(config, recipe(INT4))
    of_decoder = {
        row.name.split(".", 3)[3]
        for row in plan.rows
        if row.spec.part == "decoder" and row.step is None
    }
    assert of_decoder == {
        "linear_attn.in_proj_a",
        "linear_attn.in_proj_b",
        "mlp.gate",
        "mlp.shared_expert_gate",
    }
    tensors = dict(build_model(config).named_parameters())
    assert {
        f"model.layers.0.linear_attn.{name}" for name in ("conv1d.weight", "A_log", "dt_bias")
    } <= tensors.keys() - {f"{row.name}.weight" for row in plan.rows}


@pytest.mark.parametrize("names", [("in_proj_qkv", "in_proj_z"), ("q_proj", "v_proj")])
def test_layers_that_engines_fuse_share_a_scheme(names: tuple[str, str]) -> None:
    config = small_model(small_config("qwen3_5")).config
    steps = [
        INT4 | {"targets": [f"*.{names[0]}"]},
        INT4 | {"bits": 8, "targets": [f"*.{names[1]}"]},
    ]
    with pytest.raises(ValueError, match=rf"{names[0]}.*{names[1]}|{names[1]}.*{names[0]}"):
        make_plan(config, recipe(*steps))


def test_experts_and_the_shared_expert_are_solved_written_and_read(tmp_path: Path) -> None:
    raw = small_config("qwen3_5_moe", num_hidden_layers=2)
    model, original = small_model(raw), small_model(raw)
    source = write_small_checkpoint(tmp_path / "source", original)
    samples = [prompt(model.config, [], 250, 9)]
    report = quantize_(model, recipe(INT4 | {"method": "gptq"}), samples)
    solved = [layer for layer in report.layers if "undersampled" not in layer.values]
    names = {layer.row.name.split(".", 3)[3] for layer in solved}
    shared = {f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")}
    assert shared < names
    assert any(".experts." in name for name in names)
    for layer in solved:
        assert layer.final_error is not None
        assert layer.rtn_error is not None
        assert layer.final_error < layer.rtn_error, layer.row.name
    kept = {name.split(".", 3)[3] for name in report.to_dict()["kept"] if "layers" in name}
    assert kept == {
        *("linear_attn.in_proj_a", "linear_attn.in_proj_b"),
        *("mlp.gate", "mlp.shared_expert_gate"),
    }
    save_quantized(model, report, source, tmp_path / "gptq", format="gptq")
    loaded = compressed_layers(load_quantized(tmp_path / "gptq", device="cpu"))
    for name, ours in compressed_layers(model).items():
        assert loaded[name].quantized().equals(ours.quantized()), name
    gptq = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    rules = [rule.removeprefix("-:") for rule in gptq["dynamic"]]
    for name in (
        "model.language_model.layers.0.linear_attn.in_proj_ba",
        "model.layers.1.mlp.gate",
        "model.layers.1.mlp.shared_expert_gate",
    ):
        assert any(re.match(rule, name) for rule in rules), name
    for name in (
        "model.layers.0.linear_attn.in_proj_qkvz",
        "model.layers.1.mlp.shared_expert.gate_up_proj",
        "model.layers.1.mlp.experts.0.gate_proj",
    ):
        assert not any(re.match(rule, name) for rule in rules), name


def test_a_shared_expert_in_float_is_excluded_by_its_fused_name() -> None:
    config = small_model(small_config("qwen3_5_moe")).config
    plan = make_plan(config, recipe(INT4 | {"ignore": ["*.shared_expert.*"]}), format="gptq")
    patterns = excluding_patterns(config, plan.contents.unquantized)
    for name in ("gate_proj", "up_proj", "down_proj", "gate_up_proj"):
        assert any(re.match(p, f"model.layers.2.mlp.shared_expert.{name}") for p in patterns)
