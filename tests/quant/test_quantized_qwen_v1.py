"""Quantization of Qwen-VL of 2023: its layers, files and refusals."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from qwen_v1_models import CONFIG, pixels, v1_config, v1_prompt, write_v1_checkpoint
from qwen_v1_reference import logits as reference_logits
from safetensors.torch import load_file
from torch import Tensor, nn

from vlpress.model.families import NormBinding, PairBinding, family_of
from vlpress.model.generation import generate
from vlpress.model.loading import load_model
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.api import export, quantize
from vlpress.quant.checkpoint.formats.format import refusal
from vlpress.quant.checkpoint.formats.table import FORMATS, find_format
from vlpress.quant.checkpoint.loading import load_quantized
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe

INT4 = {"method": "gptq", "bits": 4, "group_size": 128}


def recipe(*steps: dict[str, Any], **tables: Any) -> Recipe:
    return Recipe.from_dict({"name": "test", "step": list(steps), **tables})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen-v1") / "source"
    write_v1_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def quantized(source: Path) -> Path:
    """A w4a16 checkpoint in the format that is chosen for the family."""
    out = source.parent / "w4a16"
    quantize(source, out=out, recipe="w4a16", calib_samples=2)
    return out


def sample(model: QwenVL) -> Tensor:
    prompts = [v1_prompt(1, 6, model.config), v1_prompt(0, 20, model.config)]
    with torch.no_grad():
        return torch.cat(model(prompts))


def unpacked(tensors: dict[str, Tensor], name: str) -> Tensor:
    """Weight of a GPTQ layer by the rules of AutoGPTQ, whose zero points are stored minus one."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    packed, zeros = tensors[f"{name}.qweight"], tensors[f"{name}.qzeros"]
    integers = ((packed[:, None] >> shifts[:, None]) & 15).flatten(0, 1)
    zeros = ((zeros[:, :, None] >> shifts) & 15).flatten(1) + 1
    group = tensors[f"{name}.g_idx"].long()
    scales = tensors[f"{name}.scales"].double()
    return (scales[group] * (integers - zeros[group]).double()).T


def test_files_have_the_names_of_the_published_int4_checkpoint(
    source: Path, quantized: Path
) -> None:
    tensors, config = load_file(quantized / "model.safetensors"), CONFIG
    layers = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
    packed = {f"transformer.h.{index}.{name}" for index in range(2) for name in layers}
    assert {name.removesuffix(".qweight") for name in tensors if name.endswith("qweight")} == packed
    originals = load_file(source / "model.safetensors")
    kept = {name for name in originals if name.removesuffix(".weight") not in packed}
    parts = {
        f"{name}.{part}" for name in packed for part in ("qweight", "qzeros", "scales", "g_idx")
    }
    assert set(tensors) == kept | parts
    written = json.loads((quantized / "config.json").read_text())
    settings = written.pop("quantization_config")
    assert written == config
    assert settings["modules_in_block_to_quantize"] == [
        *(["attn.c_attn"], ["attn.c_proj"], ["mlp.w1", "mlp.w2"], ["mlp.c_proj"])
    ]
    assert (settings["quant_method"], settings["bits"], settings["group_size"]) == ("gptq", 4, 128)
    assert (settings["sym"], settings["desc_act"], settings["true_sequential"]) == (
        True,
        False,
        True,
    )
    assert json.loads((quantized / "quantize_config.json").read_text()) == settings
    for name in ("qwen.tiktoken", "modeling_qwen.py", "generation_config.json"):
        assert (quantized / name).read_bytes() == (source / name).read_bytes()


def test_a_quantized_checkpoint_gives_the_logits_of_the_formulas(quantized: Path) -> None:
    tensors = load_file(quantized / "model.safetensors")
    names = [name.removesuffix(".qweight") for name in tensors if name.endswith("qweight")]
    dense = tensors | {f"{name}.weight": unpacked(tensors, name) for name in names}
    model = load_quantized(quantized, device="cpu")
    prompt = v1_prompt(1, 6, model.config)
    theirs = reference_logits(prompt.input_ids.tolist(), [pixels(0).double()], dense, CONFIG)
    ours = model([prompt])[0].double()
    assert float((ours - theirs).abs().max()) <= 1e-4
    answer = generate(model, [prompt], max_new_tokens=3, stop_ids=[])[0]
    assert answer.token_ids[0] == int(theirs[-1].argmax())


def test_a_model_in_memory_is_read_back_equal(source: Path, tmp_path: Path) -> None:
    model = load_model(source, device="cpu")
    prompts = [v1_prompt(images, words, model.config) for images, words in ((1, 30), (0, 40))]
    steps = [INT4 | {"targets": ["transformer.h.*.mlp.*"]}]
    steps += [INT4 | {"bits": 8, "targets": ["*.attn.c_attn"]}]
    report = quantize_(model, recipe(*steps), prompts)
    save_quantized(model, report, source=source, out=tmp_path / "out", format="gptq")
    again = load_quantized(tmp_path / "out", device="cpu")
    torch.testing.assert_close(sample(again), sample(model), atol=1e-5, rtol=0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    # Rules match the names that layers have in the files.
    names = {"+:": "transformer.h.1.attn.c_attn", "-:": "transformer.h.0.attn.c_proj"}
    for sign, name in names.items():
        rules = [rule[2:] for rule in config["dynamic"] if rule.startswith(sign)]
        assert sum(re.match(rule, name) is not None for rule in rules) == 1
        assert not any(re.match(rule, "transformer.h.0.mlp.c_proj") for rule in rules)


def test_gptq_beats_rounding_in_every_layer(source: Path) -> None:
    model = load_model(source, device="cpu")
    prompts = [v1_prompt(2, 40 + words, model.config) for words in range(4)]
    for layer in quantize_(model, recipe(INT4), prompts).layers:
        assert layer.final_error is not None
        assert layer.rtn_error is not None
        assert layer.final_error < layer.rtn_error, layer.row.name


def stage_output(model: QwenVL, part: str) -> Tensor:
    prompt = v1_prompt(1, 6, model.config)
    with torch.no_grad():
        return model.encode(prompt.visuals)[0]["hidden"] if part == "tower" else model([prompt])[0]


def test_bindings_leave_the_function_unchanged(source: Path) -> None:
    model, tested = load_model(source, device="cpu"), []
    for stage in family_of(model.config).stages:
        for binding in stage.bindings(model.config, 0):
            scaled = copy.deepcopy(model)
            block = scaled.get_submodule(stage.block_path(0))

            def layer(name: str, block: nn.Module = block) -> nn.Linear:
                module = block.get_submodule(name)
                assert isinstance(module, nn.Linear)
                return module

            parts: list[Tensor]
            if isinstance(binding, NormBinding):
                parts, readers = (
                    list(block.get_submodule(binding.norm).parameters()),
                    binding.linears,
                )
            else:
                assert isinstance(binding, PairBinding)
                index, count = binding.part
                of_source = layer(binding.source)
                parts = [p.chunk(count)[index] for p in of_source.parameters()]
                readers = (binding.target,)
            scale = 2.0 ** (torch.arange(parts[0].shape[0]) % 5 - 2)
            for part in parts:
                part.div_(scale.view(-1, *[1] * (part.dim() - 1)))
            for name in readers:
                layer(name).weight.mul_(scale)
            before, after = (stage_output(each, stage.part) for each in (model, scaled))
            torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
            tested.append(type(binding))
    assert tested == [*[NormBinding] * 4, PairBinding, PairBinding]


def test_an_engine_is_claimed_nowhere(quantized: Path) -> None:
    card = (quantized / "README.md").read_text()
    assert "No engine of today loads this family" in card
    assert "import" not in card
    assert "loads it" not in card


@pytest.mark.parametrize(
    ("format", "words"),
    [
        ("awq", "family qwen as awq; allowed: gptq, compressed-tensors"),
        ("gptq_v2", "allowed: gptq, compressed-tensors"),
        ("gguf", "of the family qwen; allowed: qwen2_vl"),
        ("onnx", "of the family qwen; allowed: qwen2_vl"),
    ],
)
def test_formats_without_readers_are_refused(
    quantized: Path, tmp_path: Path, format: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        export(quantized, out=tmp_path / "out", format=format)
    assert "\n" not in str(refused.value)


def test_auto_takes_gptq_where_it_fits() -> None:
    config = v1_config()
    for step, expected in ((INT4, "gptq"), (INT4 | {"bits": 5}, "compressed-tensors")):
        plan = make_plan(config, recipe(step))
        assert find_format(plan.contents)[0].name == expected == plan.format
        assert refusal(FORMATS[expected], plan.contents) is None


def test_scales_of_a_cache_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kv_cache.*family qwen"):
        make_plan(v1_config(), recipe(INT4, kv_cache={}))
