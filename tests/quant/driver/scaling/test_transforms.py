import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from sequential_runs import run_sequential
from tiny_models import prompt, prompts, small_config, small_model
from torch import Tensor

from vlpress.calib.capture import watch_inputs
from vlpress.calib.samples.draw import load_samples
from vlpress.calib.sequential import CalibrationBlock
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.loading import open_model, resolve_folder
from vlpress.quant.checkpoint.outliers import add_outliers_
from vlpress.quant.driver.pipeline import quantize_
from vlpress.quant.driver.report import QuantReport
from vlpress.quant.driver.scaling.transforms import BlockTransforms
from vlpress.quant.methods.smoothquant import smooth_scales, weight_absmax
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.targets import quantized_layers

INT8 = {"method": "rtn", "bits": 8, "group_size": -1}
INT4 = {"method": "rtn", "bits": 4, "group_size": 32}
AWQ = {"method": "awq", "points": 4}
pytestmark = pytest.mark.usefixtures("few_alphas")
ALL = {"targets": ["visual.*", "model.layers.*"]}


def recipe(*steps: dict[str, Any]) -> Recipe:
    return Recipe.from_dict({"name": "test", "step": list(steps)})


def transform(model: QwenVL, recipe: Recipe, samples: Sequence[Prompt]) -> BlockTransforms:
    """Run only the transforms of a recipe; all layers stay in float."""
    plan = make_plan(model.config, recipe)
    transforms = BlockTransforms(model, plan, model.device)

    def prepare(view: CalibrationBlock) -> None:
        transforms.prepare(view)

    run_sequential(
        model,
        samples,
        [row.spec for row in plan.quantized],
        lambda group, hessian, _: None,
        prepare=prepare,
    )
    return transforms


def logits(model: QwenVL) -> Tensor:
    with torch.no_grad():
        return torch.cat(model(prompts(model.config)))


def distance(model: QwenVL, reference: QwenVL) -> float:
    actual, expected = logits(model), logits(reference)
    return float((actual - expected).norm() / expected.norm())


def with_outliers(seed: int = 0) -> QwenVL:
    model = small_model(seed=seed)
    add_outliers_({name: p.data for name, p in model.named_parameters()}, model.config)
    return model


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("qwen2_vl", "smoothquant"),
        ("qwen2_5_vl", "smoothquant"),
        ("qwen2_5_vl", "awq"),
        pytest.param("qwen2_vl", "awq", marks=pytest.mark.slow),
    ],
)
def test_the_float_function_stays(family: str, method: str) -> None:
    raw = small_config(family)
    if family == "qwen2_5_vl":
        raw["vision_config"]["intermediate_size"] = 128  # nothing to pad
    model, original = small_model(raw), small_model(raw)
    step = AWQ if method == "awq" else {"method": method}
    done = transform(model, recipe({**step, **ALL}, {**INT8, **ALL}), prompts(model.config))
    folded = [report for report in done.reports if report.scales is not None]
    assert len(folded) == (15 if family == "qwen2_vl" else 17) or method == "awq"
    assert len(folded) > 8
    actual, expected = logits(model), logits(original)
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-5
    touched = {report.planned.source for report in folded}
    for source in touched:
        name = f"{source}.weight"
        assert not torch.equal(model.get_parameter(name), original.get_parameter(name))


def test_fixed_alpha_is_the_formula() -> None:
    model, original = small_model(), small_model()
    steps = {"method": "smoothquant", "alpha": 0.3, "targets": ["model.layers.0.*.q_proj"]}
    done = transform(model, recipe(steps, INT8), prompts(model.config))
    rows: list[Tensor] = []
    q_proj = original.get_submodule("model.layers.0.self_attn.q_proj")
    with torch.no_grad(), watch_inputs({q_proj: rows.append}):
        for sample in prompts(model.config):
            original([sample])
    act_scales = torch.cat([row.flatten(0, -2) for row in rows]).abs().amax(dim=0)
    readers = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    weights = [original.get_parameter(name) for name in readers]
    expected = smooth_scales(act_scales, weight_absmax(weights), 0.3)
    (report,) = done.reports
    assert report.values["alpha"] == 0.3
    assert report.scales is not None
    torch.testing.assert_close(report.scales, expected, rtol=1e-4, atol=1e-5)
    for name, weight in zip(readers, weights, strict=True):
        torch.testing.assert_close(model.get_parameter(name).data, weight.data * report.scales)
    assert done.changed == {"model.layers.0.input_layernorm.weight"}


def test_changed_are_the_tensors_that_stay_in_float() -> None:
    model, original = small_model(small_config("qwen2_vl")), small_model(small_config("qwen2_vl"))
    only = {"targets": ["visual.blocks.0.*", "model.layers.0.*.o_proj"]}
    done = transform(
        model, recipe({"method": "smoothquant", **only}, {**INT8, **only}), prompts(model.config)
    )
    block = "visual.blocks.0"
    different = {
        name
        for name, parameter in original.named_parameters()
        if not torch.equal(parameter, model.get_parameter(name))
    }
    quantized = {f"{block}.attn.{name}.weight" for name in ("qkv", "proj")}
    quantized |= {f"{block}.mlp.fc1.weight", "model.layers.0.self_attn.o_proj.weight"}
    norms = {f"{block}.{norm}.{leaf}" for norm in ("norm1", "norm2") for leaf in ("weight", "bias")}
    assert norms < done.changed
    # v_proj stays in float; qkv is quantized, but its bias is not.
    assert {f"model.layers.0.self_attn.v_proj.{leaf}" for leaf in ("weight", "bias")} < done.changed
    assert f"{block}.attn.qkv.bias" in done.changed
    assert different == done.changed | quantized


def test_search_takes_the_best_and_leaves_no_trace_of_the_others() -> None:
    model = with_outliers()
    searching = recipe(
        {"method": "smoothquant", "alpha": "search"}, INT8 | {"activations": "static"}
    )
    done = transform(model, searching, prompts(model.config))
    assert all(isinstance(m, torch.nn.Linear) for m in layers_of(model))
    for report in done.reports:
        assert report.error is not None and report.plain_error is not None
        assert report.error < report.plain_error
    alphas = [report.values["alpha"] for report in done.reports]
    assert len(set(alphas[:4])) > 1  # not one for the whole block
    # The same alphas, given by hand one after the other, lead to the same weights.
    again = with_outliers()
    by_hand = [
        {
            "method": "smoothquant",
            "alpha": report.values["alpha"],
            "targets": [report.planned.linears[0]],
        }
        for report in done.reports
        if report.values["alpha"] is not None
    ]
    transform(again, recipe(*by_hand, INT8), prompts(again.config))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, again.get_parameter(name), rtol=1e-4, atol=1e-6)


def layers_of(model: QwenVL) -> list[torch.nn.Module]:
    plan = make_plan(model.config, recipe(INT8))
    return [model.get_submodule(row.name) for row in plan.quantized]


def test_search_leaves_a_block_alone_if_smoothing_only_hurts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def harmful(act: Tensor, weight: Tensor, alpha: float) -> Tensor:
        return torch.logspace(-3, 3, len(act))

    monkeypatch.setattr("vlpress.quant.driver.scaling.smoothing.smooth_scales", harmful)
    model, original = small_model(), small_model()
    searching = recipe({"method": "smoothquant", "alpha": "search"}, INT8)
    done = transform(model, searching, prompts(model.config))
    assert [report.values["alpha"] for report in done.reports] == [None] * 8
    assert all(report.scales is None for report in done.reports)
    assert done.changed == set()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, original.get_parameter(name))


def test_an_error_during_the_search_leaves_the_block_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: object) -> float:
        raise RuntimeError("stop")

    monkeypatch.setattr(CalibrationBlock, "evaluate", fail)
    model, original = small_model(), small_model()
    searching = recipe({"method": "smoothquant", "alpha": "search"}, INT8)
    with pytest.raises(RuntimeError, match="stop"):
        transform(model, searching, prompts(model.config))
    assert quantized_layers(model) == {}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, original.get_parameter(name))


@pytest.mark.parametrize("activations", [pytest.param("dynamic", marks=pytest.mark.slow), "static"])
def test_smoothing_recovers_what_outliers_cost(activations: str) -> None:
    rounding = INT8 | {"activations": activations}
    samples = prompts(small_model().config)
    plain, smoothed, fixed, original = (with_outliers() for _ in range(4))
    quantize_(plain, recipe(rounding), samples)
    quantize_(smoothed, recipe({"method": "smoothquant", "alpha": "search"}, rounding), samples)
    quantize_(fixed, recipe({"method": "smoothquant"}, rounding), samples)
    assert distance(smoothed, original) < 0.6 * distance(plain, original)
    assert distance(fixed, original) < 0.6 * distance(plain, original)


def test_awq_beats_rounding_and_reports_it() -> None:
    samples = prompts(small_model().config)
    plain, scaled, original = (with_outliers() for _ in range(3))
    quantize_(plain, recipe(INT4))
    report = quantize_(scaled, recipe(AWQ | {"clip": False}, INT4), samples)
    assert distance(scaled, original) < 0.9 * distance(plain, original)
    for row in report.transforms:
        assert row.error is not None and row.plain_error is not None
        assert row.error <= row.plain_error
        assert (
            (row.scales is None) == (row.values["ratio"] is None) == (row.error == row.plain_error)
        )
    assert any(row.values["ratio"] for row in report.transforms)


def test_awq_foresees_the_error_of_rounding() -> None:
    model = with_outliers()
    steps = recipe(AWQ | {"clip": False}, INT4)
    # Without true_sequential the inputs of the last group are still those of the search.
    calibration = replace(steps.calibration, true_sequential=False)
    report = quantize_(model, replace(steps, calibration=calibration), prompts(model.config))
    foreseen = report.transforms[3]
    assert foreseen.planned.linears == ("model.layers.0.mlp.down_proj",)
    layer = next(x for x in report.layers if x.row.name == "model.layers.0.mlp.down_proj")
    assert layer.error == pytest.approx(foreseen.error, rel=1e-3)


def test_clipping_searches_the_scales_of_rounded_layers() -> None:
    samples = prompts(small_model().config)
    clipped, plain = small_model(), small_model()
    first = quantize_(clipped, recipe(AWQ, INT4), samples)
    second = quantize_(plain, recipe(AWQ | {"clip": False}, INT4), samples)

    def total(report: QuantReport) -> float:
        return sum(layer.error or 0.0 for layer in report.layers)

    assert total(first) < 0.95 * total(second)


def test_awq_before_gptq() -> None:
    solving = INT4 | {"method": "gptq"}
    samples = prompts(small_model().config)
    plain, scaled = with_outliers(), with_outliers()
    first = quantize_(plain, recipe(solving), samples)
    second = quantize_(scaled, recipe(AWQ, solving), samples)
    assert all(layer.row.step and layer.row.step.falls_back for layer in second.layers)
    sums = [sum(layer.final_error or 0.0 for layer in report.layers) for report in (first, second)]
    assert sums[1] < 1.05 * sums[0]


def test_transforms_run_in_the_order_written() -> None:
    model = small_model()
    steps = (AWQ, {"method": "smoothquant"}, INT8)
    done = transform(model, recipe(*steps), prompts(model.config))
    methods = [report.planned.transform.method for report in done.reports]
    assert methods == (["awq"] * 4 + ["smoothquant"] * 4) * 2
    assert distance(model, small_model()) < 1e-5


def test_skipped_groups_are_reported() -> None:
    model = small_model()
    rounding = INT8 | {"ignore": ["*.down_proj"]}
    done = transform(model, recipe({"method": "smoothquant"}, rounding), prompts(model.config))
    left = [report for report in done.reports if report.planned.reason]
    assert [report.planned.source for report in left] == [
        f"model.layers.{i}.mlp.up_proj" for i in range(2)
    ]
    assert left[0].to_dict()["alpha"] is None


def test_report_is_json_and_sorted() -> None:
    model = small_model()
    steps = (AWQ, {"method": "smoothquant", "alpha": "search"}, INT8)
    report = quantize_(model, recipe(*steps), prompts(model.config))
    data = report.to_dict()
    assert json.loads(json.dumps(data)) == data
    assert data["changed"] == sorted(report.changed)
    assert "model.layers.0.input_layernorm.weight" in data["changed"]
    awq, smooth = data["transforms"][0], data["transforms"][4]
    assert set(awq) - set(smooth) == {"ratio", "balanced"}
    assert set(smooth) - set(awq) == {"alpha"}
    assert awq["source"] == smooth["source"] == "model.layers.0.input_layernorm"
    assert smooth["scales"] is None or smooth["scales"][0] <= smooth["scales"][1]
    assert Recipe.from_dict(data["recipe"]) == report.recipe


@pytest.mark.slow
def test_same_input_same_factors() -> None:
    def run() -> list[dict[str, Any]]:
        model = small_model()
        steps = (AWQ, {"method": "smoothquant", "alpha": "search"}, INT8)
        done = transform(model, recipe(*steps), prompts(model.config))
        return [report.to_dict() for report in done.reports]

    assert run() == run()


def in_stored_bf16() -> QwenVL:
    """A model whose files hold bf16 and that computes in float32."""
    model = small_model(dtype=torch.bfloat16).float()
    model.config = replace(model.config, dtype_name="bfloat16")
    return model


def test_what_is_stored_is_what_was_calibrated() -> None:
    """Norms take what bf16 holds of their factors, and the columns take the rest."""
    model, original = in_stored_bf16(), in_stored_bf16()
    done = transform(model, recipe({"method": "smoothquant"}, INT8), prompts(model.config))
    assert "model.layers.1.post_attention_layernorm.weight" in done.changed
    for name in done.changed:
        value = model.get_parameter(name).data
        assert torch.equal(value, value.to(torch.bfloat16).float()), name
    # Biases of v_proj are rounded one by one, which nothing can make up for.
    assert distance(model, original) < 1e-3
    norms = {"method": "smoothquant", "targets": ["*.q_proj", "*.gate_proj"]}
    exact = in_stored_bf16()
    transform(exact, recipe({**norms, "ignore": ["visual.*"]}, INT8), prompts(model.config))
    assert distance(exact, original) < 1e-5


def test_a_model_in_half_precision() -> None:
    model, original = (small_model(dtype=torch.bfloat16) for _ in range(2))
    steps = ({"method": "smoothquant", "alpha": "search"}, AWQ, INT8)
    report = quantize_(model, recipe(*steps), prompts(model.config))
    assert model.get_parameter("model.layers.0.input_layernorm.weight").dtype == torch.bfloat16
    assert all(
        name in dict(model.named_parameters()) or name.endswith(".bias") for name in report.changed
    )
    assert distance(model, original) < 0.05


def test_a_dead_channel_changes_nothing() -> None:
    model, original = small_model(), small_model()
    for each in (model, original):
        each.get_parameter("model.layers.0.input_layernorm.weight").data[[3, 9]] = 0
        each.get_parameter("model.layers.1.mlp.down_proj.weight").data[:, 5] = 0
    done = transform(model, recipe({"method": "smoothquant"}, AWQ, INT8), prompts(model.config))
    for report in done.reports:
        assert report.scales is None or bool(torch.isfinite(report.scales).all())
    assert done.reports[0].scales is not None
    assert done.reports[0].scales[[3, 9]].tolist() == [1.0, 1.0]
    assert distance(model, original) < 1e-5


def test_overflow_names_the_source() -> None:
    model = small_model()
    model.get_parameter("model.layers.1.input_layernorm.weight").data[0] = float("inf")
    for method in ("smoothquant", "awq"):
        named = r"^model\.layers\.1\.input_layernorm\b.*calibrate in"
        with pytest.raises(ValueError, match=named):
            transform(model, recipe({"method": method}, INT8), prompts(model.config))


def test_an_error_that_is_not_finite_stops_the_search() -> None:
    model = small_model()
    for name in ("gate", "up", "down"):  # the squared output of the block overflows float32
        model.get_parameter(f"model.layers.1.mlp.{name}_proj.weight").data.mul_(5e5)
    model.get_parameter("model.layers.1.post_attention_layernorm.weight").data.mul_(1e3)
    searching = recipe({"method": "smoothquant", "alpha": "search"}, INT4)
    with pytest.raises(ValueError, match=r"^model\.layers\.1: .*alpha \[None.* is (nan|inf)"):
        transform(model, searching, prompts(model.config))


def test_an_error_of_awq_that_is_not_finite_names_the_layers() -> None:
    model = small_model()
    model.get_parameter("model.layers.1.self_attn.k_proj.weight").data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layers\.1\..*layernorm, .*layers\.1\..*k_proj.* is nan"):
        transform(model, recipe(AWQ, INT4), prompts(model.config))


def test_text_alone_cannot_smooth_the_tower() -> None:
    model = small_model(small_config("qwen2_vl"))
    vision = {"targets": ["visual.*"]}
    text = [prompt(model.config, [], 5, 0)]
    with pytest.raises(ValueError, match=r"visual\.blocks\.0: .*images"):
        transform(model, recipe({"method": "smoothquant", **vision}, {**INT8, **vision}), text)


def divergence(model: QwenVL, reference: QwenVL, samples: Sequence[Prompt]) -> float:
    """Mean KL(reference || model) in nats over all tokens."""
    total, count = 0.0, 0
    with torch.no_grad():
        for sample in samples:
            candidate = model([sample])[0].log_softmax(dim=-1)
            base = reference([sample])[0].log_softmax(dim=-1)
            total += float((base.exp() * (base - candidate)).sum())
            count += len(sample)
    return total / count


@pytest.mark.slow
def test_smoothing_saves_tiny_outliers_from_static_scales() -> None:
    folder = resolve_folder("tiny-outliers")
    processor = Processor.from_folder(folder)

    def encode(count: int, seed: int) -> list[Prompt]:
        samples = load_samples(None, n=count, seed=seed)
        return [processor.encode(s.messages, answer=s.answer) for s in samples]

    calibration, held_out = encode(16, 0), encode(8, 12345)
    reference = open_model("tiny-outliers", device="cpu", dtype="fp32")
    divergences = []
    rounding = INT8 | {"activations": "static"}
    for steps in ((rounding,), ({"method": "smoothquant", "alpha": 0.7}, rounding)):
        model = open_model("tiny-outliers", device="cpu", dtype="fp32")
        quantize_(model, recipe(*steps), calibration)
        divergences.append(divergence(model, reference, held_out))
    assert divergences[0] > 0.05
    assert divergences[1] < divergences[0] / 5
