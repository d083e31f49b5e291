import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import EACH_FAMILY, prompts, small_config, small_model, write_small_checkpoint

from vlpress.calib.capture import watch_inputs
from vlpress.calib.token_weights import find_token_weights, gradient_image_weights
from vlpress.model.families import family_of
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.driver import report as report_module
from vlpress.quant.driver.pipeline import check_format, make_plan, quantize_, save_quantized
from vlpress.quant.methods.affine import QuantizedWeight, choose_input_scale
from vlpress.quant.methods.gptq import GPTQResult, gptq, gptq_prepared
from vlpress.quant.methods.grids.activation_rounding import rounded_activations
from vlpress.quant.methods.hessian.prepared_hessian import PreparedHessian
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme, TableScheme
from vlpress.quant.runtime.linear import QuantLinear
from vlpress.quant.targets import quantized_layers


def recipe(calibration: dict[str, Any] | None = None, **step: Any) -> Recipe:
    base = {"method": "gptq", "bits": 4, "group_size": 32}
    return Recipe.from_dict(
        {"name": "test", "calibration": calibration or {}, "step": [base | step]}
    )


def distance(model: QwenVL, reference: QwenVL) -> float:
    with torch.no_grad():
        a = torch.cat(model(prompts(model.config)))
        b = torch.cat(reference(prompts(model.config)))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_replaces_decoder_linears_only(family: str) -> None:
    model = small_model(small_config(family))
    report = quantize_(model, recipe(), prompts(model.config))
    layers = quantized_layers(model)
    assert sorted(layers) == sorted(row.name for row in report.plan.quantized)
    of_decoder = [
        spec for spec in family_of(model.config).linears(model.config) if spec.part == "decoder"
    ]
    assert len(layers) == len(of_decoder)
    assert all(name.startswith("model.layers.") for name in layers)
    assert [layer.row.name for layer in report.layers] == [r.name for r in report.plan.quantized]
    # With experts, rounding sends some tokens to others.
    most = 0.5 if model.config.text.experts is None else 0.8
    assert 0 < distance(model, small_model(small_config(family))) < most
    assert all(not module._forward_pre_hooks for module in model.modules())


def test_first_group_equals_gptq_by_hand() -> None:
    model, original = small_model(), small_model()
    quantize_(model, recipe(), prompts(model.config))
    name = "model.layers.0.self_attn.k_proj"
    rows: list[torch.Tensor] = []
    with torch.no_grad(), watch_inputs({original.get_submodule(name): rows.append}):
        for sample in prompts(original.config):
            original([sample])
    x = torch.cat([row.reshape(-1, 64) for row in rows])
    expected = gptq(original.get_parameter(f"{name}.weight"), x.t() @ x, QuantScheme(4, 32))
    layer = model.get_submodule(name)
    assert isinstance(layer, QuantLinear)
    same = (layer.quantized().integers == expected.weight.integers).float().mean()
    assert float(same) > 0.99


def test_rounded_inputs_are_those_that_the_layer_multiplies() -> None:
    """With fp4 activations, layers are solved for the inputs after rounding."""
    model, original = small_model(), small_model()
    scheme = TableScheme("mxfp4", activations="dynamic")
    steps = [{"method": "gptq", "grid": "mxfp4", "activations": "dynamic"}]
    report = quantize_(model, Recipe.from_dict({"step": steps}), prompts(model.config))
    name = "model.layers.0.self_attn.k_proj"
    rows: list[torch.Tensor] = []
    with torch.no_grad(), watch_inputs({original.get_submodule(name): rows.append}):
        for sample in prompts(original.config):
            original([sample])
    x = torch.cat([row.reshape(-1, 64) for row in rows])
    weight = original.get_parameter(f"{name}.weight").detach()
    rounded = rounded_activations(x, scheme)
    expected = gptq(weight, rounded.t() @ rounded, scheme)
    layer = next(layer for layer in report.layers if layer.row.name == name)
    assert layer.error == pytest.approx(expected.error, rel=1e-3)
    assert layer.error != pytest.approx(gptq(weight, x.t() @ x, scheme).error, rel=1e-2)


def test_gptq_is_closer_than_rounding_on_its_calibration_set() -> None:
    model, rounded, original = small_model(), small_model(), small_model()
    quantize_(model, recipe(bits=3), prompts(model.config))
    quantize_(rounded, recipe(method="rtn", bits=3))
    assert distance(model, original) < 0.9 * distance(rounded, original)


def test_more_bits_are_closer() -> None:
    distances = []
    for bits in (3, 4, 8):
        model = small_model()
        quantize_(model, recipe(method="rtn", bits=bits))
        distances.append(distance(model, small_model()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < 0.02


def test_rtn_needs_no_prompts() -> None:
    model, original = small_model(), small_model()
    report = quantize_(model, recipe(method="rtn"))
    layer = quantized_layers(model)["model.layers.1.mlp.down_proj"]
    weight = original.get_parameter("model.layers.1.mlp.down_proj.weight")
    assert layer.quantized().equals(rtn(weight, QuantScheme(4, 32)))
    assert report.calibration is None
    assert report.to_dict()["calibration"] is None
    assert not report.true_sequential


def test_two_methods_in_one_recipe() -> None:
    model = small_model()
    both = Recipe.from_dict(
        {
            "step": [
                {"method": "gptq", "bits": 4, "group_size": 32, "ignore": ["*.down_proj"]},
                {
                    "method": "rtn",
                    "bits": 8,
                    "group_size": 32,
                    "targets": ["model.layers.*.down_proj"],
                },
            ]
        }
    )
    report = quantize_(model, both, prompts(model.config))
    down = quantized_layers(model)["model.layers.0.mlp.down_proj"]
    assert down.scheme.bits == 8
    methods = {layer.row.name: layer.to_dict()["method"] for layer in report.layers}
    assert methods["model.layers.0.mlp.down_proj"] == "rtn"
    assert methods["model.layers.0.mlp.up_proj"] == "gptq"
    check_format(report.plan, "gptq")
    with pytest.raises(ValueError, match=r"format awq: .*\.0\.mlp\.down_proj and 1 more layer"):
        check_format(report.plan, "awq")


def test_quantized_vision_tower_is_not_written_as_gptq(tmp_path: Path) -> None:
    original = small_model()
    source = write_small_checkpoint(tmp_path / "source", original)
    model = small_model()
    only = recipe(targets=["visual.*.attn.*"], group_size=-1, bits=8)
    report = quantize_(model, only, prompts(model.config))
    assert all(name.startswith("visual.blocks.") for name in quantized_layers(model))
    assert 0 < distance(model, original) < 0.1
    message = r"format gptq: visual\.blocks\.0\.attn\.qkv and 3 more layers"
    with pytest.raises(ValueError, match=message):
        save_quantized(model, report, source, tmp_path / "out", format="gptq")
    assert not (tmp_path / "out").exists()


def test_report() -> None:
    model = small_model()
    seen: list[tuple[int, int, str]] = []
    report = quantize_(
        model, recipe(), prompts(model.config), on_progress=lambda *args: seen.append(args)
    )
    assert [done for done, _, _ in seen] == list(range(1, 15))
    assert seen[0][1] == 14
    assert seen[0][2].startswith("model.layers.0.self_attn.q_proj error ")
    data = report.to_dict()
    assert Recipe.from_dict(data["recipe"]) == report.recipe
    assert data["calibration"]["samples"] == 4
    assert data["calibration"]["with_images"] == 3
    assert data["calibration"]["tokens"] == sum(len(p) for p in prompts(model.config))
    assert data["layers"][0]["tokens"] == data["calibration"]["tokens"]
    assert data["layers"][0]["damp_percent"] == 0.01
    assert 0 < data["layers"][0]["error"] < data["layers"][0]["rtn_error"]
    assert data["kept"]["lm_head"] == "it shares its weight with the token embedding"
    assert len(data["kept"]) + len(data["layers"]) == len(report.plan.rows)


def test_calibration_fingerprint_notices_the_prompts() -> None:
    config = small_model().config
    weights = find_token_weights("uniform", small_model(), [])

    def record(samples: list[Prompt]) -> report_module.CalibrationRecord:
        return report_module.CalibrationRecord.of(samples, weights)

    base = record(prompts(config)).fingerprint
    assert base == record(prompts(config)).fingerprint
    assert base != record(prompts(config)[:3]).fingerprint
    changed = prompts(config)
    changed[0].input_ids[0] += 1
    assert base != record(changed).fingerprint


def test_same_input_same_integers() -> None:
    first, second = small_model(), small_model()
    quantize_(first, recipe(), prompts(first.config))
    quantize_(second, recipe(), prompts(second.config))
    for name, layer in quantized_layers(first).items():
        assert layer.quantized().equals(quantized_layers(second)[name].quantized())


def test_token_weights_change_the_result() -> None:
    first, second = small_model(), small_model()
    quantize_(first, recipe(), prompts(first.config))
    quantize_(second, recipe({"token_weights": {"image": 0.1}}), prompts(second.config))
    name = "model.layers.0.self_attn.q_proj"
    layers = quantized_layers(first)[name], quantized_layers(second)[name]
    assert not layers[0].quantized().equals(layers[1].quantized())


def test_found_token_weights_are_in_the_report() -> None:
    samples = prompts(small_model().config)
    used = {}
    for kind in ("uniform", "balanced", "gradient"):
        lines: list[tuple[int, int, str]] = []

        def note(*line: Any, lines: list[tuple[int, int, str]] = lines) -> None:
            lines.append(line)

        weighted = recipe({"token_weights": kind})
        report = quantize_(small_model(), weighted, samples, on_progress=note)
        data = report.to_dict()
        assert data["recipe"]["calibration"]["token_weights"] == kind
        assert Recipe.from_dict(data["recipe"]) == report.recipe
        used[kind] = data["calibration"]["token_weights"]
        assert ((0, 14, "token weights by gradient") in lines) == (kind == "gradient")
    images = sum(len(v.patches) // 4 for sample in samples for v in sample.visuals)
    texts = sum(len(sample) for sample in samples) - images
    assert used["uniform"] == {"image": 1.0, "text": 1.0}
    assert used["balanced"] == {"image": texts / images, "text": 1.0}
    # Of the float model, before anything was quantized; two blocks share the first one's weight.
    expected = gradient_image_weights(small_model(), samples)
    assert used["gradient"] == {"image": expected["model.layers.0"], "text": 1.0}


def test_tokens_that_count_nothing_are_left_out() -> None:
    samples = prompts(small_model().config)
    weights = {"image": 0, "text": 1}
    report = quantize_(small_model(), recipe({"token_weights": weights}), samples)
    images = sum(len(v.patches) // 4 for sample in samples for v in sample.visuals)
    tokens = sum(len(sample) for sample in samples)
    assert {layer.tokens for layer in report.layers} == {tokens - images}
    only_pictures = recipe({"token_weights": {"text": 0}})
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj: no calibration sample"):
        quantize_(small_model(), only_pictures, samples[:1])


def test_gradient_weights_without_pictures_fail_before_anything_changes() -> None:
    model = small_model()
    with pytest.raises(ValueError, match=r"image.* text"):
        quantize_(model, recipe({"token_weights": "gradient"}), prompts(model.config)[:1])
    assert not quantized_layers(model)


def fail_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the solver find no factor for the Hessian of one layer."""

    def solve(
        weight: torch.Tensor, hessian: PreparedHessian, *args: Any, **options: Any
    ) -> GPTQResult[QuantizedWeight]:
        if torch.equal(weight, small_model().get_parameter(name)):
            hessian = replace(hessian, factor=None)
        return gptq_prepared(weight, hessian, *args, **options)

    monkeypatch.setattr("vlpress.quant.methods.gptq.gptq_prepared", solve)


def test_a_layer_without_a_factor_is_in_the_report(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    name = "model.layers.0.self_attn.k_proj"  # 32 of 1024 rows: within the allowed 5 %
    fail_for(f"{name}.weight", monkeypatch)
    model = small_model()
    seen: list[str] = []
    report = quantize_(
        model,
        recipe(),
        prompts(model.config),
        on_progress=lambda done, total, detail: seen.append(detail),
    )
    assert "rounded instead" in seen[1]
    assert f"{name}: no Cholesky factor" in caplog.text
    data = report.to_dict()
    assert data["layers"][1]["fallback"].startswith("no Cholesky factor")
    assert data["layers"][0]["fallback"] is None
    assert data["fallback_rows"] >= 32


def test_too_many_fallback_rows_fail_the_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_for("model.layers.0.self_attn.q_proj.weight", monkeypatch)  # 64 of 1024 rows
    model = small_model()
    message = r"on 64 of 1024 rows .* most in model\.layers\.0\.self_attn\.q_proj \(no Cholesky"
    with pytest.raises(ValueError, match=message):
        quantize_(model, recipe(), prompts(model.config))
    replaced = [
        name
        for name, _ in small_model().named_modules()
        if type(model.get_submodule(name)) is not type(small_model().get_submodule(name))
    ]
    assert replaced == ["model.layers.0.self_attn.q_proj"]


def test_overflow_names_the_layer() -> None:
    model = small_model()
    model.get_parameter("model.layers.1.input_layernorm.weight").data[0] = float("inf")
    with pytest.raises(
        ValueError, match=r"input of model\.layers\.1\.self_attn\.q_proj is not fin"
    ):
        quantize_(model, recipe(), prompts(model.config))


def test_static_scales_come_from_the_inputs_at_the_time() -> None:
    """Of the first layer by hand; of a later one, on what the quantized ones before it give."""
    model = small_model()
    static = recipe(method="rtn", bits=8, group_size=-1, activations="static")
    report = quantize_(model, static, prompts(model.config))
    layers = quantized_layers(model)
    assert report.calibration is not None
    largest: dict[str, float] = {}

    def see(name: str, x: torch.Tensor) -> None:
        largest[name] = max(largest.get(name, 0.0), float(x.abs().max()))

    watchers: dict[torch.nn.Module, Any] = {
        layer: (lambda x, name=name: see(name, x)) for name, layer in layers.items()
    }
    with torch.no_grad(), watch_inputs(watchers):
        for sample in prompts(model.config):
            model([sample])
    for name, layer in layers.items():
        assert layer.input_scale is not None
        assert torch.equal(layer.input_scale, choose_input_scale(largest[name])), name
        assert torch.equal(layer.input_scale, layer.input_scale.to(torch.bfloat16).float())
    assert layers["model.layers.1.self_attn.q_proj"].input_scale == (
        layers["model.layers.1.self_attn.v_proj"].input_scale
    )
    assert 0 < distance(model, small_model()) < 0.1


@pytest.mark.parametrize("activations", ["dynamic", "static"])
@pytest.mark.parametrize(("bits", "group_size"), [(8, -1), (4, 32)])
def test_gptq_with_rounded_activations(activations: str, bits: int, group_size: int) -> None:
    model, weights_only, original = small_model(), small_model(), small_model()
    grid: dict[str, Any] = {"bits": bits, "group_size": group_size}
    quantize_(model, recipe(**grid, activations=activations), prompts(model.config))
    quantize_(weights_only, recipe(**grid), prompts(model.config))
    layer = quantized_layers(model)["model.layers.0.mlp.down_proj"]
    assert layer.scheme.activations == activations
    assert (layer.input_scale is not None) == (activations == "static")
    assert 0 < distance(model, weights_only)
    assert distance(model, original) < distance(weights_only, original) + 0.1


def test_rounding_with_calibration_reports_errors() -> None:
    model, uncalibrated = small_model(), small_model()
    both = Recipe.from_dict(
        {
            "step": [
                {"method": "gptq", "bits": 4, "group_size": 32, "ignore": ["*.down_proj"]},
                {"method": "rtn", "bits": 4, "group_size": 32, "targets": ["model.*.down_proj"]},
            ]
        }
    )
    report = quantize_(model, both, prompts(model.config))
    rows = {row["name"]: row for row in report.to_dict()["layers"]}
    rounded = rows["model.layers.0.mlp.down_proj"]
    assert 0 < rounded["error"] == rounded["rtn_error"] == rounded["final_error"] < 0.1
    assert rounded["tokens"] == rows["model.layers.0.mlp.up_proj"]["tokens"]
    # The integers are those of rounding, whatever was measured.
    quantize_(uncalibrated, recipe(method="rtn"))
    name = "model.layers.0.mlp.down_proj"
    first, second = quantized_layers(model)[name], quantized_layers(uncalibrated)[name]
    assert first.quantized().equals(second.quantized())
    assert "error" not in quantize_(small_model(), recipe(method="rtn")).to_dict()["layers"][0]


def test_progress_shows_the_transforms() -> None:
    model = small_model()
    steps = [{"method": "awq", "points": 4}, {"method": "rtn", "bits": 4, "group_size": 32}]
    seen: list[tuple[int, int, str]] = []
    quantize_(
        model,
        Recipe.from_dict({"step": steps}),
        prompts(model.config),
        on_progress=lambda *args: seen.append(args),
    )
    assert seen[0] == (0, 14, "model.layers.0.input_layernorm awq")
    assert seen[-1][:2] == (14, 14)


def test_inputs_too_large_for_a_static_scale() -> None:
    model = small_model()
    model.get_parameter("model.layers.0.input_layernorm.weight").data.mul_(1e9)
    static = recipe(method="rtn", bits=8, group_size=-1, activations="static")
    with pytest.raises(ValueError, match=r"q_proj .*static scale"):
        quantize_(model, static, prompts(model.config))


def test_rejects() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="no calibration prompts"):
        quantize_(copy.deepcopy(model), recipe())
    with pytest.raises(ValueError, match=r"'hqq' is unknown.*gptq_v2, compressed-tensors, awq"):
        check_format(make_plan(model.config, recipe()), "hqq")
    with pytest.raises(ValueError, match=r"format gptq: .*asymmetric"):
        check_format(make_plan(model.config, recipe(symmetric=False)), "gptq")
    with pytest.raises(ValueError, match=r"5 bits.*2, 3, 4, 8"):
        check_format(make_plan(model.config, recipe(bits=5)), "gptq")
    quantize_(model, recipe(method="rtn"))
    with pytest.raises(ValueError, match="is quantized already"):
        quantize_(model, recipe(method="rtn"))


@pytest.mark.gpu
def test_runs_on_the_accelerator() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no accelerator")
    model = small_model().to("cuda")
    report = quantize_(model, recipe(), prompts(model.config))
    packed = [layer.packed for layer in quantized_layers(model).values()]
    assert all(part is not None and part.is_cuda for part in packed)
    assert all(layer.error is not None and layer.error < 1 for layer in report.layers)


def grown(factor: float) -> QwenVL:
    model = small_model()
    model.model.embed_tokens.weight.data.mul_(factor)
    return model


def test_activations_beyond_float16_are_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    model = grown(1e6)
    quantize_(model, recipe(), prompts(model.config))
    warnings = [record.message for record in caplog.records if "float16" in record.message]
    assert len(warnings) == 1
    assert warnings[0].startswith("the output of model.layers.0 reaches ")
    caplog.clear()
    quantize_(model := grown(1.0), recipe(), prompts(model.config))
    assert not caplog.records
