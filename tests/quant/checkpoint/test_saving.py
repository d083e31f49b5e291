"""Models that quantization changed elsewhere too: what is written is what was computed with."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from format_files import quantization_config, same_logits, same_weights
from gptq_files import all_tensors
from tiny_models import EACH_FAMILY, prompts, small_config, small_model, write_small_checkpoint

from vlpress.model.checkpoint import canonical_name
from vlpress.quant.checkpoint.export import export
from vlpress.quant.driver.pipeline import load_quantized, quantize_, save_quantized
from vlpress.quant.driver.report import QuantReport
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.targets import quantized_layers

pytestmark = pytest.mark.usefixtures("reference_kernel")

INT8 = {"method": "gptq", "bits": 8, "group_size": -1, "activations": "dynamic"}
SMOOTH = {"method": "smoothquant", "alpha": 0.5}
TOWER = ["visual.*"]


def saved(
    tmp_path: Path,
    *steps: dict[str, Any],
    family: str = "qwen2_5_vl",
    stored: torch.dtype = torch.bfloat16,
    computed: torch.dtype = torch.bfloat16,
    **source_form: Any,
) -> tuple[Any, QuantReport, Path]:
    raw = small_config(family) | {"torch_dtype": str(stored).removeprefix("torch.")}
    original = small_model(raw, dtype=stored)
    source = write_small_checkpoint(tmp_path / "source", original, **source_form)
    model = original.to(computed)
    rule = Recipe.from_dict({"name": "test", "step": list(steps)})
    report = quantize_(model, rule, prompts(model.config))
    save_quantized(model, report, source, tmp_path / "out")
    return model, report, tmp_path / "out"


@pytest.mark.parametrize("family", EACH_FAMILY)
@pytest.mark.parametrize("computed", [torch.bfloat16, torch.float32])
def test_norms_that_took_factors(tmp_path: Path, family: str, computed: torch.dtype) -> None:
    smooth = SMOOTH | ({"ignore": ["*.experts.*"]} if family.endswith("_moe") else {})
    model, report, out = saved(tmp_path, smooth, INT8, family=family, computed=computed)
    norm = "model.layers.0.input_layernorm.weight"
    assert norm in report.changed
    before, after = (
        {canonical_name(name): value for name, value in all_tensors(folder).items()}
        for folder in (tmp_path / "source", out)
    )
    assert not torch.equal(before[norm], after[norm])
    unchanged = {n for n in set(before) & set(after) if before[n].dtype == after[n].dtype}
    for name in unchanged - report.changed:
        owner = name.rpartition(".")[0]
        assert owner in quantized_layers(model) or torch.equal(before[name], after[name])
    assert after[norm].dtype == torch.bfloat16
    assert same_logits(model, load_quantized(out, device="cpu", dtype=computed))
    assert json.loads((out / "vlpress.json").read_text())["changed"] == sorted(report.changed)


@pytest.mark.parametrize("source_form", [{}, {"nested": True, "shards": 2}])
def test_a_tower_that_grew(tmp_path: Path, source_form: dict[str, Any]) -> None:
    tower = INT8 | {"targets": TOWER, "ignore": ["visual.blocks.1.*"]}
    int4 = {"method": "rtn", "bits": 4, "group_size": 32}
    model, report, out = saved(tmp_path, tower, int4, **source_form)
    raw = json.loads((out / "config.json").read_text())
    assert raw["vision_config"]["intermediate_size"] == 128
    assert [padding.after for padding in report.plan.padding] == [128]
    prefix = "model." if source_form else ""
    tensors = all_tensors(out)
    float_block = f"{prefix}visual.blocks.1.mlp"  # config.json has one width for all blocks
    assert tensors[f"{float_block}.gate_proj.weight"].shape == (128, 32)
    assert tensors[f"{float_block}.gate_proj.bias"].shape == (128,)
    assert tensors[f"{float_block}.down_proj.weight"].shape == (32, 128)
    assert not tensors[f"{float_block}.down_proj.weight"][:, 36:].any()
    config = quantization_config(out)
    assert config["format"] == "mixed-precision"
    assert any(entry.startswith(r"re:(.*\.)?visual\.blocks\.(1)\.") for entry in config["ignore"])
    assert same_logits(model, load_quantized(out, device="cpu"))
    assert report.candidate_bytes == sum(tensor.nbytes for tensor in tensors.values())
    export(out, tmp_path / "again", "compressed-tensors")
    assert same_weights(out, tmp_path / "again")
    for name in ("config.json", "vlpress.json"):
        assert (tmp_path / "again" / name).read_bytes() == (out / name).read_bytes()


def test_static_activations_are_loaded_again(tmp_path: Path) -> None:
    model, _, out = saved(tmp_path, SMOOTH, INT8 | {"activations": "static"})
    loaded = load_quantized(out, device="cpu")
    for name, layer in quantized_layers(model).items():
        assert layer.quantized().equals(quantized_layers(loaded)[name].quantized())
    assert same_logits(model, loaded)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_types_of_the_source(tmp_path: Path, stored: torch.dtype) -> None:
    """Scales and biases take the type of the checkpoint's own tensors."""
    model, report, out = saved(tmp_path, INT8, stored=stored, computed=torch.float32)
    tensors = all_tensors(out)
    for part in ("weight_scale", "bias"):
        assert tensors[f"model.layers.1.self_attn.k_proj.{part}"].dtype == stored
    assert report.candidate_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert same_logits(model, load_quantized(out, device="cpu", dtype=torch.float32))
