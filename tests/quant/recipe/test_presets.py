"""All presets, on a small model with widths of 128."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import paths
import pytest
import torch
from tiny_models import prompts, small_config, small_model, write_small_checkpoint

from vlpress.model.families import family_of
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.driver.pipeline import load_quantized, quantize_, save_quantized
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.presets import PRESETS
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme, Scheme, TableScheme
from vlpress.quant.steps.awq import AWQStep
from vlpress.quant.steps.smoothquant import SmoothQuantStep
from vlpress.quant.targets import compressed_layers

pytestmark = pytest.mark.usefixtures("reference_kernel", "few_alphas")

EXAMPLES = paths.EXAMPLES / "recipes"
SHARED = sorted(path.stem for path in EXAMPLES.glob("*.toml") if path.stem in PRESETS)


def wider_model(family: str) -> QwenVL:
    text: dict[str, Any] = {"hidden_size": 128}
    if family == "qwen2_5_vl":  # head_dim is hidden_size / num_attention_heads
        text |= {"num_attention_heads": 8, "num_key_value_heads": 4}
    if family.startswith("qwen3_5"):
        text |= {"linear_value_head_dim": 64}
    if family.endswith("_moe"):
        text |= {"moe_intermediate_size": 128, "shared_expert_intermediate_size": 128}
    raw = small_config(family, **text)
    raw["vision_config"]["out_hidden_size"] = 128
    return small_model(raw)


def test_names_match_the_recipe() -> None:
    """A preset has the name of its recipe, and its steps match that name."""
    for name in PRESETS:
        recipe = Recipe.resolve(name)
        assert recipe.name == name
        assert recipe.needs_calibration != name.endswith("-rtn")
        decoder = recipe.steps[-1].scheme
        if isinstance(decoder, TableScheme):
            assert name.startswith(decoder.grid)
            assert (decoder.activations == "none") == ("a16" in name)
        else:
            assert f"w{decoder.bits}a{16 if decoder.activations == 'none' else 8}" in name
        smoothed = any(isinstance(step, SmoothQuantStep) for step in recipe.transforms)
        assert smoothed == ("a8" in name and not name.endswith("-rtn"))


def test_names_are_listed_without_slow_imports() -> None:
    """`vlpress --help` prints the presets, and must not import torch or pydantic for that."""
    check = (
        "import sys, vlpress.quant.recipe.presets; print({'torch', 'pydantic'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_schemes() -> None:
    def scheme(name: str) -> Scheme:
        return Recipe.resolve(name).steps[-1].scheme

    assert scheme("w4a16") == QuantScheme(4, 128)
    assert scheme("w4a16-g32") == QuantScheme(4, 32)
    assert scheme("w4a16-all") == QuantScheme(4, 128)
    tower, embedding, head, _ = (step.scheme for step in Recipe.resolve("w4a16-all").steps)
    assert (tower, embedding, head) == (QuantScheme(4, 32), QuantScheme(4, 128), QuantScheme(8))
    assert not Recipe.resolve("w4a16-all").tie and Recipe.resolve("w4a16").tie
    assert scheme("w4a16-awq") == QuantScheme(4, 128, symmetric=False)
    assert scheme("w8a8") == scheme("w8a8-rtn") == QuantScheme(8, -1, activations="dynamic")
    assert scheme("w8a8-static") == QuantScheme(8, -1, activations="static")
    assert scheme("w4a8") == QuantScheme(4, 128, activations="dynamic")
    assert scheme("fp8") == scheme("fp8-rtn") == TableScheme("fp8", -1, 1, "dynamic")
    assert scheme("fp8-block") == TableScheme("fp8", 128, 128, "dynamic")
    assert scheme("fp8-static") == TableScheme("fp8", -1, 1, "static")
    assert scheme("nvfp4") == TableScheme("nvfp4", 16, 1, "dynamic")
    assert scheme("nvfp4a16") == TableScheme("nvfp4", 16)
    assert scheme("mxfp4") == TableScheme("mxfp4", 32, 1, "dynamic")
    awq = Recipe.resolve("w4a16-awq")
    assert awq.transforms == (AWQStep(clip=True),)
    assert awq.steps[0].method == "rtn"


@pytest.mark.parametrize("name", SHARED)
def test_example_files_spell_out_the_presets(name: str) -> None:
    assert Recipe.resolve(EXAMPLES / f"{name}.toml") == Recipe.resolve(name)


def test_most_examples_are_presets() -> None:
    required = {"w4a16", "w8a16", "w3a16", "w8a8", "w4a8"}
    assert required | {"vision-w8a16+decoder-w4a16", "vision-w8a8+decoder-w4a16"} <= set(SHARED)


# One preset of each method and format.
OF_INTEGERS = ("w3a16-rtn", "w4a16", "w4a16-gptaq", "w4a16-awq", "w4a8", "w8a8-static")
QUICK = {
    "qwen2_5_vl": (*OF_INTEGERS, "fp8-block", "nvfp4"),
    "qwen3_vl": ("w3a16", "vision-w8a8+decoder-w4a16", "w4a16-all"),
    "qwen3_5": ("w4a8",),
    "qwen3_5_moe": (),
}
# Experts see other tokens than the float model's, some see none, and their inputs are not scaled.
NOT_FOR_EXPERTS = {
    *(name for name in PRESETS if name.endswith(("gptaq", "awq", "static"))),
    *("w8a8", "w4a8", "nvfp4"),
}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(family, name, marks=() if name in quick else pytest.mark.slow)
        for family, quick in QUICK.items()
        for name in PRESETS
        if not (family.endswith("_moe") and name in NOT_FOR_EXPERTS)
    ],
)
def test_runs_and_is_written_in_the_default_format(family: str, name: str, tmp_path: Path) -> None:
    model, original = wider_model(family), wider_model(family)
    source = write_small_checkpoint(tmp_path / "source", original)
    samples = prompts(model.config)
    report = quantize_(model, Recipe.resolve(name), samples)
    save_quantized(model, report, source, tmp_path / "out")
    loaded = load_quantized(tmp_path / "out", device="cpu", dtype="fp32")
    seen = {layer.startswith("visual") for layer in compressed_layers(loaded)}
    has_tower = "vision" in name or name == "w4a16-all"
    assert seen == ({True, False} if has_tower else {False})
    if name == "w4a16-all":
        assert {"model.embed_tokens", "lm_head"} <= {*compressed_layers(loaded)}
    if has_tower:
        linears = family_of(model.config).linears(model.config)
        assert {s.name for s in linears if s.part == "tower"} <= {*compressed_layers(loaded)}
    with torch.no_grad():
        logits, reloaded, float_logits = (torch.cat(m(samples)) for m in (model, loaded, original))
    assert torch.equal(logits, reloaded)
    # One key head of linear attention, and the choice of experts, carry an error on.
    most = 0.9 if family.startswith("qwen3_5") else 0.5
    assert 0 < float((logits - float_logits).norm() / float_logits.norm()) < most


@pytest.mark.parametrize("name", sorted(NOT_FOR_EXPERTS))
def test_what_experts_do_not_allow_is_refused_before_any_work(name: str) -> None:
    with pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts\.0\.gate_proj"):
        make_plan(wider_model("qwen3_5_moe").config, Recipe.resolve(name))
