"""LLaVA quantized: plan, bindings, layers that never run, formats, and transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from blockwise_jobs import finish, job
from llava_models import llava_config, pixels, random_tensors, write_llava
from reference_model import make_image
from safetensors.torch import load_file
from sequential_runs import run_sequential
from torch import Tensor

import vlpress
from vlpress.calib.sequential import CalibrationBlock
from vlpress.model.carried import CarriedTensors
from vlpress.model.checkpoint import CheckpointReader, canonical_name
from vlpress.model.config import ModelConfig
from vlpress.model.loading import load_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.checkpoint.formats.patterns import (
    carried_patterns,
    excluding_patterns,
    layer_patterns,
)
from vlpress.quant.driver.pipeline import load_quantized, quantize_, save_quantized
from vlpress.quant.driver.scaling.transforms import BlockTransforms
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.targets import compressed_layers

INT4 = {"method": "rtn", "bits": 4, "group_size": 128}
INT8 = {"method": "rtn", "bits": 8, "group_size": -1}
DYNAMIC = INT8 | {"activations": "dynamic"}
TOWER = {"targets": ["visual.*"]}
DECODER = {"targets": ["model.layers.*"]}
SLOW = pytest.mark.slow
NEVER_RUNS = (
    "vision_tower.vision_model.encoder.layers.2.mlp.fc1.weight",
    "vision_tower.vision_model.post_layernorm.bias",
)


def small(text: str = "llama") -> dict[str, Any]:
    """Make a config.json with two layers each, and one of the tower that never runs."""
    text_config, vision_config = {"num_hidden_layers": 2}, {"num_hidden_layers": 3}
    return llava_config(text, text_config=text_config, vision_config=vision_config)


def recipe(*steps: dict[str, Any]) -> Recipe:
    return Recipe.from_dict({"name": "test", "step": list(steps)})


@pytest.fixture(scope="module", params=["llama", pytest.param("qwen2", marks=SLOW)])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("source"), small(request.param))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llava(tmp_path_factory.mktemp("llama"), small())


def samples(folder: Path) -> list[Prompt]:
    processor = Processor.from_folder(folder)
    images = [make_image(100, 60, 0), make_image(64, 130, 1)]
    contents: list[list[dict[str, Any]]] = [
        [{"type": "image", "image": images[0]}, {"type": "text", "text": "What is it?"}],
        [*({"type": "image", "image": image} for image in images), {"type": "text", "text": "So?"}],
        [{"type": "text", "text": "No image at all."}],
    ]
    return [processor.encode([{"role": "user", "content": parts}]) for parts in contents]


def logits(model: QwenVL, prompts: list[Prompt]) -> Tensor:
    with torch.no_grad():
        return torch.cat(model(prompts))


def test_the_plan_has_a_row_for_every_linear_layer(source: Path) -> None:
    config = ModelConfig.from_folder(source)
    carried = CarriedTensors.of(config, CheckpointReader(source))
    plan = make_plan(config, recipe(INT4 | DECODER), carried=carried)
    names = {name for name, tensor in random_tensors(config.raw).items() if tensor.dim() == 2}
    linears = {name for name in names if "embed" not in name}
    assert len(plan.rows) == len(linears) == 3 * 6 + 2 + 2 * 7 + 1
    fates = {row.name: row.reason for row in plan.rows if row.step is None}
    assert len(fates) == 3 * 6 + 2 + 1
    assert "never runs" in fates["visual.encoder.layers.2.mlp.fc1"]
    assert "no step targets it" in fates["visual.encoder.layers.1.mlp.fc1"]
    assert sum(plan.source_parts.values()) == sum(
        tensor.nbytes for tensor in random_tensors(config.raw).values()
    )


def test_layers_that_never_run_cannot_be_targeted(source: Path) -> None:
    config = ModelConfig.from_folder(source)
    carried = CarriedTensors.of(config, CheckpointReader(source))
    with pytest.raises(ValueError, match="matches no linear layer"):
        make_plan(config, recipe(INT8 | {"targets": ["*.layers.2.mlp.fc1"]}), carried=carried)


@pytest.mark.parametrize(
    "method",
    [{"method": "smoothquant", "alpha": 0.5}, pytest.param({"method": "awq"}, marks=SLOW)],
    ids=["smoothquant", "awq"],
)
def test_bindings_leave_the_float_function_unchanged(source: Path, method: dict[str, Any]) -> None:
    model, original = (load_model(source, device="cpu") for _ in range(2))
    of_all = {"targets": ["visual.*", "model.layers.*"]}
    plan = make_plan(model.config, recipe(method | of_all, INT8 | of_all))
    transforms, prompts = BlockTransforms(model, plan, model.device), samples(source)

    def prepare(view: CalibrationBlock) -> None:
        transforms.prepare(view)

    specs = [row.spec for row in plan.quantized]
    run_sequential(model, prompts, specs, lambda group, hessian, _: None, prepare=prepare)
    folded = {report.planned.source for report in transforms.reports if report.scales is not None}
    if method["method"] == "smoothquant":
        assert len(folded) == 2 * 3 + 2 * 4  # norms and values of the tower, and of the decoder
        assert "visual.encoder.layers.0.self_attn.v_proj" in folded
        assert "visual.encoder.layers.0.mlp.fc1" not in folded
    for name in folded:
        weight = f"{name}.weight"
        assert not torch.equal(model.get_parameter(weight), original.get_parameter(weight))
    actual, expected = logits(model, prompts), logits(original, prompts)
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.usefixtures("reference_kernel")
def test_formats_hold_the_same_integers(source: Path, tmp_path: Path) -> None:
    prompts = samples(source)
    model = load_model(source, device="cpu")
    report = quantize_(model, recipe(INT4 | DECODER), prompts)
    expected = logits(model, prompts)
    for name in ("gptq", "gptq_v2", "awq", "compressed-tensors"):
        out = tmp_path / name
        save_quantized(model, report, source, out, format=name)
        reloaded = load_quantized(out, device="cpu", dtype="fp32")
        assert len(compressed_layers(reloaded)) == 2 * 7
        assert torch.equal(logits(reloaded, prompts), expected)
        # The names of the source, and the layers that never run.
        stored = load_file(out / "model.safetensors")
        assert {name.partition(".")[0] for name in stored} == {
            "language_model",
            "vision_tower",
            "multi_modal_projector",
        }
        before, after = (load_file(each / "model.safetensors") for each in (source, out))
        for tensor in NEVER_RUNS:
            assert torch.equal(before[tensor], after[tensor])


def test_exclusion_lists_of_formats(llama: Path, tmp_path: Path) -> None:
    model = load_model(llama, device="cpu")
    report = quantize_(model, recipe(INT4 | DECODER), samples(llama))
    configs = {}
    for name in ("gptq", "awq", "compressed-tensors"):
        save_quantized(model, report, llama, tmp_path / name, format=name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        configs[name] = config["quantization_config"]
    rules = [rule for rule in configs["gptq"]["dynamic"] if rule.startswith("-:")]
    ignored = [f"re:{rule[2:]}" for rule in rules]
    assert {"vision_tower", "multi_modal_projector", "lm_head"} <= set(
        configs["awq"]["modules_to_not_convert"]
    )
    assert not any("mtp" in str(config) for config in configs.values())
    for patterns in (ignored, configs["compressed-tensors"]["ignore"]):
        expressions = [entry[3:] for entry in patterns if entry.startswith("re:")]
        for tower in ("vision_tower.vision_model.", "model.vision_tower.", "vision_tower."):
            name = f"{tower}encoder.layers.0.self_attn.qkv_proj"
            assert any(re.match(each, name) for each in expressions)
        assert any(re.match(each, "model.multi_modal_projector.linear_1") for each in expressions)
        assert any(re.match(each, "language_model.lm_head") for each in expressions)
        for decoder in ("language_model.model.layers.0", "model.language_model.layers.0"):
            for layer in ("self_attn.qkv_proj", "mlp.gate_up_proj"):
                assert not any(re.match(each, f"{decoder}.{layer}") for each in expressions)


def test_patterns_tell_the_towers_layers_from_the_decoders() -> None:
    config = ModelConfig.from_dict(llava_config())
    tower = {f"visual.encoder.layers.{i}.self_attn.q_proj": i for i in range(4)}
    decoder = {f"model.layers.{i}.self_attn.q_proj": i for i in range(3)}

    def matched(patterns: list[str], names: list[str]) -> list[bool]:
        return [any(re.match(pattern, name) for pattern in patterns) for name in names]

    in_engine = [f"model.vision_tower.encoder.layers.{i}.self_attn.q_proj" for i in range(4)]
    of_decoder = [f"language_model.model.layers.{i}.self_attn.qkv_proj" for i in range(3)]
    names = [*in_engine, *of_decoder]
    # The fourth layer of the tower never runs and is never quantized.
    patterns = layer_patterns(config, set(list(tower)[:3]))
    assert matched(patterns, names) == [True] * 3 + [False] * 4
    assert matched(layer_patterns(config, set(decoder)), names) == [False] * 4 + [True] * 3
    assert matched(excluding_patterns(config, {list(decoder)[1]}), names) == [
        *[False] * 5,
        True,
        False,
    ]
    assert matched(carried_patterns(config, {list(tower)[3]}, "mtp"), names) == [
        *[False] * 3,
        True,
        *[False] * 3,
    ]


@pytest.mark.usefixtures("reference_kernel")
def test_blocks_from_files_equal_the_model_in_memory(source: Path, tmp_path: Path) -> None:
    steps = [
        {"method": "gptq", "bits": 4, "group_size": 128, **DECODER},
        {"method": "gptq", "bits": 8, "group_size": -1, **TOWER},
    ]
    prompts = samples(source)
    finish(job(source, steps, prompts), tmp_path / "work", tmp_path / "out")
    reloaded = load_quantized(tmp_path / "out", device="cpu", dtype="fp32")
    assert len(compressed_layers(reloaded)) == 2 * 7 + 2 * 6 + 2
    model = load_model(source, device="cpu")
    quantize_(model, recipe(*steps), prompts)
    expected = logits(model, prompts)
    assert torch.equal(logits(reloaded, prompts), expected)
    original = logits(load_model(source, device="cpu"), prompts)
    assert 0 < float((expected - original).norm() / original.norm()) < 0.5


@pytest.mark.usefixtures("reference_kernel")
def test_exports_and_refusals(llama: Path, tmp_path: Path) -> None:
    model = load_model(llama, device="cpu")
    report = quantize_(model, recipe(INT4 | DECODER), samples(llama))
    save_quantized(model, report, llama, tmp_path / "made", format="compressed-tensors")
    expected = logits(model, samples(llama))
    vlpress.export(tmp_path / "made", out=tmp_path / "awq", format="awq", progress=False)
    reloaded = load_quantized(tmp_path / "awq", device="cpu", dtype="fp32")
    assert torch.equal(logits(reloaded, samples(llama)), expected)
    for name, package in (("gguf", "gguf"), ("onnx", "onnx")):
        pytest.importorskip(package)
        with pytest.raises(
            ValueError, match="it is of the family llava; allowed: qwen2_vl"
        ) as error:
            vlpress.export(tmp_path / "made", out=tmp_path / name, format=name, progress=False)
        assert "\n" not in str(error.value)


STEPS: dict[str, list[dict[str, Any]]] = {
    "w4a16": [INT4 | DECODER],
    "w8a8": [{"method": "smoothquant"} | DECODER, DYNAMIC | DECODER],
    "tower w8a16": [INT4 | DECODER, INT8 | TOWER],
    "tower w8a8": [{"method": "smoothquant"} | TOWER, DYNAMIC | TOWER, INT4 | DECODER],
}


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "w4a16" else SLOW) for n in STEPS]
)
@pytest.mark.parametrize("naming", ["published", pytest.param("newer", marks=SLOW)])
def test_transformers_loads_compressed_tensors(name: str, naming: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", minversion="0.15")
    transformers = pytest.importorskip("transformers", minversion="5.0")
    source = write_llava(tmp_path / "source", small(), naming=naming)
    prompts = samples(source)
    model = load_model(source, device="cpu")
    report = quantize_(model, recipe(*STEPS[name]), prompts)
    save_quantized(model, report, source, tmp_path / "made", format="compressed-tensors")
    reloaded = load_quantized(tmp_path / "made", device="cpu", dtype="fp32")
    theirs, loading = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "made", dtype=torch.float32, output_loading_info=True
    )
    assert not any(loading.values())
    quantized = [n for n, m in theirs.named_modules() if hasattr(m, "quantization_scheme")]
    assert len(quantized) == len(compressed_layers(reloaded))
    for prompt in prompts:
        (expected,) = [logits(reloaded, [prompt])]
        inputs = {"pixel_values": pixels(prompt)} if prompt.visuals else {}
        with torch.no_grad():
            actual = theirs(input_ids=prompt.input_ids[None], **inputs).logits[0]
        difference = actual - expected
        if "a16" in name:
            assert float(difference.abs().max() / expected.abs().max()) < 1e-4
        # The library maps a token's largest value to 127.5 levels, vlpress to 127.
        assert float(difference.norm() / expected.norm()) < 5e-2
    for name in quantized:  # decompressed in the first pass
        layer = compressed_layers(reloaded)[canonical(name)]
        expected = layer.quantized().dequantize(torch.float32)
        torch.testing.assert_close(theirs.get_submodule(name).weight, expected)


def canonical(name: str) -> str:
    """The name of a layer by that of a module of transformers."""
    return canonical_name(name.replace("vision_tower.", "vision_tower.vision_model."))
