"""Quantized experts of a mixture-of-experts block: slices of 3-D tensors with their own taps."""

import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from blockwise_jobs import contents, finish, job, source_of
from expert_files import single_experts, write_single_experts
from gptq_files import all_tensors
from sequential_runs import run_sequential
from tiny_models import prompt, prompts
from torch import Tensor

from vlpress.calib.observers import CrossMoment, Hessian
from vlpress.calib.tap_groups import TapGroup
from vlpress.model.config import ModelConfig
from vlpress.model.expert_linear import all_tokens_to_experts
from vlpress.model.families import family_of
from vlpress.model.generation import generate
from vlpress.model.loading import load_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.api import inspect_checkpoint
from vlpress.quant.checkpoint.export import export
from vlpress.quant.checkpoint.formats.patterns import layer_patterns
from vlpress.quant.checkpoint.loading import load_quantized
from vlpress.quant.checkpoint.verify import first_tokens
from vlpress.quant.driver.experts import EXPERT_TOKENS
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.plan.experts import expected_tokens
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.targets import compressed_layers, put_calibrating, weight_of

pytestmark = pytest.mark.usefixtures("reference_kernel")

GPTQ: dict[str, Any] = {"method": "gptq", "bits": 4, "group_size": 32}
EXPERT = "model.layers.0.mlp.experts.3"
LAYERS, EXPERTS, ACTIVE = 3, 4, 2


def small_model() -> QwenVL:
    return tiny_models.small_model(small_config())


def small_config(**text: Any) -> dict[str, Any]:
    return tiny_models.small_config("qwen3_vl_moe", **text)


def recipe(*steps: dict[str, Any]) -> Recipe:
    return Recipe.from_dict({"name": "experts", "step": list(steps)})


def routed_inputs(model: QwenVL, samples: Sequence[Prompt], layer: str) -> Tensor:
    """The inputs of a layer of the float model, over all samples."""
    rows: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(
        lambda _, args: rows.append(args[0])
    )
    with torch.no_grad():
        for sample in samples:
            model([sample])
    handle.remove()
    return torch.cat(rows)


def weights(folder: Path) -> dict[str, bytes]:
    return {n: data for n, data in contents(folder).items() if n.endswith(".safetensors")}


def test_a_target_is_a_view_of_its_slice() -> None:
    model = small_model()
    specs = {spec.name: spec for spec in family_of(model.config).linears(model.config)}
    assert len([name for name in specs if ".experts." in name]) == LAYERS * 3 * EXPERTS
    stored = model.get_parameter("model.layers.0.mlp.experts.gate_up_proj")
    gate, up = (weight_of(model, specs[f"{EXPERT}.{name}_proj"]) for name in ("gate", "up"))
    assert gate.shape == up.shape == (96, 64)
    assert torch.equal(torch.cat([gate, up]), stored[3].t())
    assert gate.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()


@pytest.mark.parametrize("true_sequential", [True, False])
def test_taps_see_the_tokens_routed_to_the_expert(true_sequential: bool) -> None:
    model = small_model()
    samples = prompts(model.config)
    specs = [s for s in family_of(model.config).linears(model.config) if s.expert is not None]
    seen: dict[str, tuple[int, Tensor]] = {}

    def solve(group: TapGroup, hessian: Hessian, cross: CrossMoment | None) -> None:
        assert {spec.expert for spec in group.linears} == {group.expert}
        seen[group.linears[0].name] = hessian.tokens, hessian.values.clone()

    run_sequential(model, samples, specs, solve, true_sequential=true_sequential)
    assert len(seen) == LAYERS * 2 * EXPERTS
    for layer in ("gate_proj", "down_proj"):
        tokens, values = seen[f"{EXPERT}.{layer}"]
        rows = routed_inputs(model, samples, f"{EXPERT}.{layer}")
        assert tokens == len(rows)
        torch.testing.assert_close(values, rows.t() @ rows / len(rows), rtol=1e-4, atol=1e-5)
    total = sum(len(sample) for sample in samples)
    assert sum(seen[f"{EXPERT[:-1]}{e}.gate_proj"][0] for e in range(EXPERTS)) == ACTIVE * total


def test_weights_of_tokens_follow_them() -> None:
    model = small_model()
    sample = prompt(model.config, [], 30, 5)
    layer = f"{EXPERT}.gate_proj"
    spec = next(s for s in family_of(model.config).linears(model.config) if s.name == layer)
    weights = torch.zeros(len(sample))
    weights[:10] = 1.0
    counts = []
    run_sequential(
        model,
        [sample],
        [spec],
        lambda group, hessian, _: counts.append(hessian.tokens),
        token_weights=lambda block, of: weights if block.startswith("model.layers") else None,
    )
    first = Prompt(sample.input_ids[:10], sample.position_ids[:, :10], ())
    assert counts == [len(routed_inputs(model, [first], layer))]


def test_experts_with_few_tokens_are_rounded_and_named() -> None:
    model, original = small_model(), small_model()
    report = quantize_(model, recipe(GPTQ), prompts(model.config))
    layers = {layer.row.name: layer for layer in report.layers}
    few = {n for n, layer in layers.items() if "undersampled" in layer.values}
    assert few == {n for n in layers if ".experts." in n and layers[n].tokens < EXPERT_TOKENS}
    assert 0 < len(few) < LAYERS * 3 * EXPERTS
    name = min(few)
    weight = compressed_layers(model)[name].quantized()
    spec = layers[name].row.spec
    identity = torch.eye(spec.in_features)
    assert weight.equals(rtn(weight_of(original, spec), QuantScheme(4, 32), identity))
    assert f"fewer than {EXPERT_TOKENS}" in layers[name].values["undersampled"]
    assert layers[name].fallback_rows == 0  # no failure of the method
    solved = next(n for n in layers if ".experts." in n and n not in few)
    assert layers[solved].error is not None and layers[solved].values["damp_percent"] == 0.01


def test_the_tensor_of_all_experts_is_dropped_with_the_last_one() -> None:
    model = small_model()
    specs = [s for s in family_of(model.config).linears(model.config) if s.expert is not None]
    for spec in specs:
        if not spec.name.endswith("down_proj"):
            put_calibrating(model, spec, rtn(weight_of(model, spec), QuantScheme(4, 32)))
    left = [name for name, _ in model.named_parameters() if ".experts." in name]
    assert left == [f"model.layers.{i}.mlp.experts.down_proj" for i in range(LAYERS)]
    quantized = small_model()
    quantize_(quantized, recipe(GPTQ), prompts(model.config))
    assert not [name for name, _ in quantized.named_parameters() if ".experts." in name]


@pytest.mark.parametrize("layer", ["gate", "up", "down"])
def test_all_experts_of_a_layer_have_one_scheme(layer: str) -> None:
    """One kernel of an engine computes gate, up and down of all experts."""
    config = ModelConfig.from_dict(small_config())
    of_layer = f"model.layers.1.mlp.experts.2.{layer}_proj"
    eight = GPTQ | {"bits": 8, "targets": [of_layer]}
    message = rf"model\.layers\.1\.mlp\.experts has experts of 2 schemes .*{of_layer}: int8"
    with pytest.raises(ValueError, match=message):
        make_plan(config, recipe(GPTQ | {"ignore": [of_layer]}, eight))
    layers = [f"model.layers.{index}.mlp.experts.*" for index in (0, 2)]
    others = [GPTQ | {"targets": layers[:1], "bits": 8}, GPTQ | {"ignore": layers}]
    plan = make_plan(config, recipe(*others))  # layers may differ
    fates = [{r.fate for r in plan.rows if f".{i}.mlp.experts." in r.name} for i in range(LAYERS)]
    assert fates == [
        {"gptq int8 g32 sym"},
        {"gptq int4 g32 sym"},
        {f"kept, because the recipe ignores {layers[1]!r}"},
    ]


def test_routers_have_rows() -> None:
    plan = make_plan(ModelConfig.from_dict(small_config()), recipe(GPTQ))
    names = [row.name for row in plan.rows]
    for block in range(LAYERS):
        position = names.index(f"model.layers.{block}.mlp.gate")
        row = plan.rows[position]
        assert row.fate.startswith("kept, because it is the router")
        assert (row.spec.in_features, row.spec.out_features) == (64, EXPERTS)
        assert row.bytes_before == row.bytes_after == 4 * 64 * EXPERTS
        assert names[position - 1] == f"model.layers.{block}.self_attn.o_proj"
        assert names[position + 1] == f"model.layers.{block}.mlp.experts.0.gate_proj"


@pytest.mark.parametrize("step", [GPTQ, GPTQ | {"method": "rtn"}], ids=["gptq", "rtn"])
def test_checkpoints_hold_every_expert_under_its_own_name(
    tmp_path: Path, step: dict[str, Any]
) -> None:
    source = source_of(tmp_path, "qwen3_vl_moe", shards=2)
    samples = prompts(ModelConfig.from_folder(source))
    made = job(source, [step], samples)
    files = finish(made, tmp_path / "work", tmp_path / "out")
    model = load_model(source, device="cpu")
    report = quantize_(model, made.recipe, samples)
    save_quantized(model, report, source, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(tmp_path / "out")
    names = [name for name in all_tensors(tmp_path / "out") if ".layers.0.mlp." in name]
    experts = "model.language_model.layers.0.mlp.experts"
    packed = {n.removeprefix(f"{experts}.") for n in names if n.endswith(".weight_packed")}
    assert packed == {
        f"{expert}.{layer}_proj.weight_packed"
        for expert in range(EXPERTS)
        for layer in ("gate", "up", "down")
    }
    assert [n for n in names if experts not in n] == [f"{experts[:-8]}.gate.weight"]
    loaded = load_quantized(tmp_path / "out", device="cpu")
    with torch.no_grad():
        assert torch.equal(torch.cat(model(samples)), torch.cat(loaded(samples)))
    answers, again = (
        [a.token_ids for a in generate(m, samples, max_new_tokens=6, stop_ids=())]
        for m in (model, loaded)
    )
    assert answers == again
    assert tuple(first_tokens(tmp_path / "out", samples[0], 6, device="cpu")) == answers[0]
    layers = {layer["name"]: layer for layer in inspect_checkpoint(tmp_path / "out")["layers"]}
    size = layers[f"{EXPERT}.down_proj"]["bytes"]
    assert size == next(r.bytes_after for r in report.plan.rows if r.name.endswith("3.down_proj"))
    record = json.loads(files["vlpress.json"])
    assert record["size"]["candidate_bytes"] == report.plan.candidate_bytes
    export(tmp_path / "out", tmp_path / "gptq", "gptq")
    export(tmp_path / "gptq", tmp_path / "back", "compressed-tensors")
    assert weights(tmp_path / "back") == weights(tmp_path / "out")
    config = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    modules = itertools.chain(*config["modules_in_block_to_quantize"])
    assert "mlp.experts.3.up_proj" in modules
    router = "model.language_model.layers.1.mlp.gate"
    rules = [rule.removeprefix("-:") for rule in config["dynamic"]]
    assert any(re.match(rule, router) for rule in rules)
    assert not any(re.match(rule, f"{experts}.3.gate_proj") for rule in rules)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert router in config["ignore"]  # engines would take it for a quantized layer


LLM_COMPRESSOR: dict[str, Any] = {
    "config_groups": {
        "group_0": {
            "format": "pack-quantized",
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": None,
                "block_structure": None,
                "dynamic": False,
                "group_size": 32,
                "num_bits": 4,
                "observer": "minmax",
                "observer_kwargs": {},
                "strategy": "group",
                "symmetric": True,
                "type": "int",
            },
        }
    },
    "format": "pack-quantized",
    "global_compression_ratio": None,
    "ignore": ["re:.*lm_head", "re:.*visual.*", "re:.*mlp.gate$"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
}
GPTQMODEL: dict[str, Any] = {
    "bits": 4,
    "checkpoint_format": "gptq",
    "desc_act": False,
    "group_size": 32,
    "lm_head": False,
    "meta": {"quantizer": ["gptqmodel:7.6.0"], "damp_percent": 0.05},
    "pack_dtype": "int32",
    "quant_method": "gptq",
    "sym": True,
}


@pytest.mark.parametrize(
    ("format", "config"), [("compressed-tensors", LLM_COMPRESSOR), ("gptq", GPTQMODEL)]
)
def test_experts_of_other_writers_are_read(
    tmp_path: Path, format: str, config: dict[str, Any]
) -> None:
    """Their names of tensors are the same; config.json is that of transformers 5."""
    source = source_of(tmp_path, "qwen3_vl_moe")
    made = job(source, [GPTQ | {"method": "rtn"}], [], format=format)
    finish(made, tmp_path / "work", tmp_path / "out")
    expected = load_quantized(tmp_path / "out", device="cpu")
    path = tmp_path / "out" / "config.json"
    raw = json.loads(path.read_text()) | {"transformers_version": "5.23.0"}
    path.write_text(json.dumps(raw | {"quantization_config": config}))
    (tmp_path / "out" / "vlpress.json").unlink()
    actual = load_quantized(tmp_path / "out", device="cpu")
    assert set(compressed_layers(actual)) == set(compressed_layers(expected))
    sample = prompt(actual.config, [], 9, 2)
    with torch.no_grad():
        assert torch.equal(actual([sample])[0], expected([sample])[0])


def test_sources_with_single_experts_give_the_same_layers(tmp_path: Path) -> None:
    source = source_of(tmp_path, "qwen3_vl_moe")
    single = write_single_experts(source, tmp_path / "single")
    step = GPTQ | {"method": "rtn", "ignore": ["model.layers.1.mlp.experts.*"]}
    for folder in (source, single):
        made = job(folder, [step], [])
        finish(made, tmp_path / f"{folder.name}-work", tmp_path / f"{folder.name}-out")
    expected, actual = (all_tensors(tmp_path / f"{f.name}-out") for f in (source, single))
    kept = [
        name for name in expected if name.endswith(("experts.gate_up_proj", "experts.down_proj"))
    ]
    expected |= single_experts({name: expected.pop(name) for name in kept})
    assert set(actual) == set(expected) and len(kept) == 2
    assert all(torch.equal(actual[name], expected[name]) for name in actual)
    model = load_quantized(tmp_path / "single-out", device="cpu")
    reference = load_quantized(tmp_path / f"{source.name}-out", device="cpu")
    sample = prompt(model.config, [], 9, 2)
    with torch.no_grad():
        torch.testing.assert_close(model([sample])[0], reference([sample])[0])
    report = quantize_(loaded := load_model(single, device="cpu"), made.recipe)
    save_quantized(loaded, report, single, tmp_path / "again")
    assert weights(tmp_path / "again") == weights(tmp_path / "single-out")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            GPTQ | {"method": "gptaq"},
            "is an expert, .* method gptaq .*set all_experts .*or use gptq or rtn",
        ),
        (
            {"method": "rtn", "bits": 8, "group_size": -1, "activations": "static"},
            "is an expert, .*static; allowed: none, dynamic",
        ),
        (
            {"method": "rtn", "grid": "nvfp4", "activations": "dynamic"},
            "is an expert, for which nvfp4 .* activations have a calibrated scale; allowed: .*none",
        ),
        (
            {"method": "rtn", "bits": 8, "group_size": -1, "targets": ["*.mlp.gate"]},
            r"'\*\.mlp\.gate' matches no linear layer",
        ),
        (
            GPTQ | {"ignore": ["*.experts.1.*"]},
            r"layers\.0\.mlp\.experts has experts of 2 schemes .*experts\.0\.gate_proj: int4 .*"
            r"experts\.1\.gate_proj: kept.*give all of them one scheme",
        ),
    ],
)
def test_plan_refuses(step: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(ModelConfig.from_dict(small_config()), recipe(step))


def test_scaling_of_experts_is_refused() -> None:
    config = ModelConfig.from_dict(small_config())
    for method in ("awq", "smoothquant"):
        with pytest.raises(ValueError, match=rf"{method} .*experts\.0\..*ignore '\*\.mlp\.experts"):
            make_plan(config, recipe({"method": method}, GPTQ | {"method": "rtn"}))
    ignoring = {"method": "awq", "points": 4, "ignore": ["*.mlp.experts.*"]}
    plan = make_plan(config, recipe(ignoring, GPTQ | {"method": "rtn"}))
    assert {row.source.rpartition("layers.")[2][2:] for row in plan.transforms} == {
        "input_layernorm",
        "self_attn.v_proj",
    }


def test_plan_has_a_row_for_every_expert() -> None:
    config = ModelConfig.from_dict(small_config())
    plan = make_plan(config, recipe(GPTQ), format="gptq")
    model = small_model()
    assert plan.base_bytes == sum(p.numel() * p.element_size() for p in model.parameters())
    rows = [row for row in plan.quantized if row.spec.expert is not None]
    assert len(rows) == LAYERS * 3 * EXPERTS
    assert {row.spec.token_share for row in rows} == {ACTIVE / EXPERTS}


def test_tokens_of_experts_are_expected_and_recorded() -> None:
    model = small_model()
    samples = prompts(model.config)
    tokens = sum(map(len, samples))
    report = quantize_(model, recipe(GPTQ), samples)
    record = report.to_dict()["experts"]
    blocks = [f"model.layers.{index}.mlp.experts" for index in range(LAYERS)]
    assert record["floor"] == EXPERT_TOKENS and list(record["tokens"]) == blocks
    assert {sum(counts) for counts in record["tokens"].values()} == {ACTIVE * tokens}
    layers = {layer.row.name: layer.tokens for layer in report.layers}
    assert [record["tokens"][blocks[1]][e] for e in range(EXPERTS)] == [
        layers[f"{blocks[1]}.{e}.down_proj"] for e in range(EXPERTS)
    ]
    assert expected_tokens(report.plan.rows, tokens) == {
        "layers": LAYERS,
        "experts": EXPERTS,
        "tokens": tokens * ACTIVE / EXPERTS,
        "floor": EXPERT_TOKENS,
    }
    rounded = quantize_(small_model(), recipe(GPTQ | {"method": "rtn"}))
    assert "experts" not in rounded.to_dict()
    assert expected_tokens(rounded.plan.rows, tokens) is None


@pytest.mark.parametrize("method", ["gptq", "gptaq"])
def test_experts_can_be_calibrated_on_all_tokens(method: str) -> None:
    model = small_model()
    samples = prompts(model.config)
    tokens = sum(map(len, samples))
    data = recipe(GPTQ | {"method": method}).to_dict()
    data["calibration"]["all_experts"] = True
    everywhere = Recipe.from_dict(data)
    assert everywhere.to_dict() == data
    report = quantize_(model, everywhere, samples)
    layers = [layer for layer in report.layers if layer.row.spec.expert is not None]
    assert {layer.tokens for layer in layers} == {tokens}
    assert not [layer for layer in layers if "undersampled" in layer.values]
    planned = expected_tokens(report.plan.rows, tokens)
    assert planned is not None and planned["tokens"] == tokens
    # The first router sees equal inputs, and the outputs follow its routing.
    assert float(layers[0].error or 0) > 0


def test_all_experts_needs_experts() -> None:
    data = recipe(GPTQ).to_dict()
    assert "all_experts" not in data["calibration"]
    data["calibration"]["all_experts"] = True
    config = ModelConfig.from_dict(tiny_models.small_config("qwen3_vl"))
    with pytest.raises(ValueError, match=r"all_experts is true; allowed: false"):
        make_plan(config, Recipe.from_dict(data))


def test_outputs_follow_the_routing_while_experts_see_all_tokens() -> None:
    model = small_model()
    sample = prompt(model.config, [], 9, 2)
    with torch.no_grad():
        expected = model([sample])[0]
        with all_tokens_to_experts():
            assert torch.equal(model([sample])[0], expected)


def test_smoothing_searches_around_experts() -> None:
    model, original = small_model(), small_model()
    steps = {"method": "smoothquant", "alpha": "search", "targets": ["*.q_proj"]}
    rounding = {"method": "rtn", "bits": 8, "group_size": -1, "activations": "dynamic"}
    report = quantize_(model, recipe(steps, rounding), prompts(model.config))
    assert len(report.transforms) == LAYERS
    with torch.no_grad():
        actual, expected = (torch.cat(m(prompts(m.config))) for m in (model, original))
    assert float((actual - expected).norm() / expected.norm()) < 0.1


def test_patterns_name_the_layers_of_all_experts_at_once() -> None:
    config = ModelConfig.from_dict(small_config())
    plan = make_plan(config, recipe(GPTQ))
    names = [row.name for row in plan.quantized]
    (pattern,) = layer_patterns(config, names)
    assert r"mlp\.experts\.\d+\.down_proj" in pattern
    assert all(re.match(pattern, name) for name in names)
    some = [name for name in names if not name.endswith("experts.2.up_proj")]
    patterns = layer_patterns(config, some)
    assert [n for n in names if any(re.match(each, n) for each in patterns)] == some
