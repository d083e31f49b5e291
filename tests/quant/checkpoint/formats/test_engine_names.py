"""Layers that vLLM would load quantized, by the rules of its version 0.33, are those that are.

The rules are those of vllm/model_executor/layers/quantization: auto_gptq.py (`dynamic`, then
`modules_in_block_to_quantize`), auto_awq.py (`modules_to_not_convert`) and compressed-tensors
(`ignore`, whose entries are mapped as names of tensors are).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tiny_models import DENSE, NESTED_ONLY, small_config, small_model, write_small_checkpoint

from vlpress.model.families import LinearSpec, family_of
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.recipe.recipe import Recipe

pytestmark = pytest.mark.usefixtures("reference_kernel")

FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
    "in_proj_qkv": "in_proj_qkvz",
    "in_proj_z": "in_proj_qkvz",
    "in_proj_b": "in_proj_ba",
    "in_proj_a": "in_proj_ba",
}
INT4 = {"method": "rtn", "bits": 4, "group_size": 32}
INT8 = {"method": "rtn", "bits": 8, "group_size": -1, "activations": "dynamic"}
PARTLY = INT4 | {"ignore": ["model.layers.1.mlp.*", "model.layers.1.self_attn.o_proj"]}
CASES: list[tuple[str, list[dict[str, Any]]]] = [
    ("gptq", [INT4]),
    ("gptq", [PARTLY]),
    ("awq", [INT4]),
    ("awq", [PARTLY]),
    ("compressed-tensors", [PARTLY]),
    ("compressed-tensors", [INT8 | {"targets": ["tower"]}, INT4]),
    ("compressed-tensors", [INT8 | {"targets": ["tower"], "ignore": ["visual.merger.*"]}]),
]


def in_vllm(name: str) -> str:
    """Name of a layer, under the prefixes of `Qwen2_5_VL` and `Qwen3VL` in vLLM."""
    name = re.sub(r"^model\.(?!visual)", "language_model.model.", name)
    return name.replace("lm_head", "language_model.lm_head")


def fused(name: str) -> str:
    owner, _, last = name.rpartition(".")
    return f"{owner}.{FUSED.get(last, last)}"


def mapped(name: str) -> str:
    """Entry of an exclusion list after vLLM's mapping of prefixes."""
    for before, after in (
        ("model.visual.", "visual."),
        ("model.language_model.", "language_model.model."),
        ("lm_head", "language_model.lm_head"),
        ("model.", "language_model.model."),
    ):
        if name.startswith(before):
            return after + name.removeprefix(before)
    return name


def loads_quantized(config: dict[str, Any], spec: LinearSpec) -> bool:
    name = in_vllm(spec.name)
    if config["quant_method"] == "gptq":
        rules = [rule.removeprefix("-:") for rule in config["dynamic"] if rule.startswith("-:")]
        if any(re.match(rule, fused(name)) for rule in rules):
            return False
        members = [layer for group in config["modules_in_block_to_quantize"] for layer in group]
        return any(layer in name for layer in members)
    if config["quant_method"] == "awq":
        excluded = [mapped(entry) for entry in config["modules_to_not_convert"]]
        return not any(entry in name for entry in excluded)
    ignored = config["ignore"]
    if any(re.match(entry[3:], fused(name)) for entry in ignored if entry.startswith("re:")):
        return False
    return name not in {mapped(entry) for entry in ignored}


@pytest.mark.parametrize("family", DENSE)
@pytest.mark.parametrize(("format", "steps"), CASES)
def test_exclusion_lists(
    tmp_path: Path, family: str, format: str, steps: list[dict[str, Any]]
) -> None:
    model = small_model(small_config(family, tied=False))
    nested = family in NESTED_ONLY
    source = write_small_checkpoint(tmp_path / "source", model, nested=nested, side_files=False)
    report = quantize_(model, Recipe.from_dict({"name": "x", "step": steps}), format=format)
    save_quantized(model, report, source, tmp_path / "out", format=format)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    family_table = family_of(model.config)
    specs = family_table.linears(model.config)
    specs += [spec for spec, _ in family_table.kept(model.config)]
    quantized = {row.name for row in report.plan.quantized}
    assert {spec.name for spec in specs if loads_quantized(config, spec)} == quantized
    if family == "qwen3_vl" and "tower" in steps[0].get("targets", ()):
        assert "visual.deepstack_merger_list.1.linear_fc2" in quantized
