"""Adapters of checkpoints: every format, with and without, what is recorded and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from format_files import checkpoint, recipe, same_logits
from safetensors.torch import load_file, save_file

from vlpress.cli.console import inspect_table
from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.api import export, inspect
from vlpress.quant.checkpoint.formats.table import FORMATS
from vlpress.quant.checkpoint.loading import open_model
from vlpress.quant.checkpoint.model_card import Base, write_model_card
from vlpress.quant.driver.pipeline import load_quantized
from vlpress.quant.driver.report import QuantReport
from vlpress.quant.methods.grids.group_scales import divisor_of
from vlpress.quant.methods.grids.table_weight import TableWeight
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.pack import pack
from vlpress.quant.recipe.adapter import without_adapter
from vlpress.quant.recipe.grids import GRIDS
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.runtime.adapter import LowRankAdapter
from vlpress.quant.targets import compressed_linears

pytestmark = pytest.mark.usefixtures("reference_kernel")

HOLDING = [name for name, form in FORMATS.items() if QuantScheme.kind in form.kinds]
RULE = {"method": "gptq", "adapter_rank": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[QwenVL, QuantReport, Path]:
    """A checkpoint that the tests do not change."""
    return checkpoint(tmp_path_factory.mktemp("made"), recipe(RULE), "compressed-tensors")


@pytest.fixture
def own(made: tuple[QwenVL, QuantReport, Path], tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made[2], tmp_path / "own"))


def size_of(folder: Path) -> int:
    return sum(tensor.nbytes for tensor in load_file(folder / "adapter_model.safetensors").values())


@pytest.mark.parametrize("format", HOLDING)
def test_every_format_has_the_adapter_beside_it(tmp_path: Path, format: str) -> None:
    model, report, folder = checkpoint(tmp_path, recipe({"adapter_rank": 4}), format)
    loaded = load_quantized(folder, device="cpu")
    assert same_logits(model, loaded)
    without = load_quantized(folder, device="cpu", adapter=False)
    assert not same_logits(model, without)
    for layer in compressed_linears(model).values():
        layer.adapter = None
    assert same_logits(model, without)
    assert {f.name for f in (folder / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    record = json.loads((folder / "vlpress.json").read_text())
    reader = CheckpointReader(folder)
    stored = sum(map(reader.nbytes, reader.names())) + size_of(folder / "adapter")
    assert record["size"]["candidate_bytes"] == stored
    if format == report.plan.format:
        assert stored == report.candidate_bytes
        assert record["size"]["bits_per_weight"] == pytest.approx(report.bits_per_weight)


def test_the_folder_is_that_of_the_library(made: tuple[QwenVL, QuantReport, Path]) -> None:
    model, report, folder = made
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 4)
    assert config["base_model_name_or_path"] is None
    layers = compressed_linears(model)
    newer = [f"model.language_model.{name.removeprefix('model.')}" for name in layers]
    assert config["target_modules"] == sorted(newer)
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert {name.rpartition(".lora_")[0] for name in tensors} == {
        f"base_model.model.{name}" for name in newer
    }
    for name, layer in layers.items():
        adapter = layer.adapter
        assert isinstance(adapter, LowRankAdapter)
        key = f"base_model.model.model.language_model.{name.removeprefix('model.')}"
        assert torch.equal(tensors[f"{key}.lora_A.weight"], adapter.down)
        assert torch.equal(tensors[f"{key}.lora_B.weight"], adapter.up)
        assert adapter.down.dtype == torch.bfloat16
    assert all(layer.adapter_error < layer.final_error for layer in report.layers)  # type: ignore[operator]


def test_what_is_shown(made: tuple[QwenVL, QuantReport, Path]) -> None:
    _, report, folder = made
    shown, planned = inspect(folder), report.plan.adapter
    assert planned is not None and shown["adapter"] == planned
    assert planned["kinds"] == ["eora"] and planned["layers"] == len(report.layers)
    assert planned["bytes"] == size_of(folder / "adapter")
    assert shown["bytes"] == report.candidate_bytes
    assert shown["parts"] == report.plan.candidate_parts
    sizes = {layer["name"]: layer["bytes"] for layer in shown["layers"]}
    assert sizes == {row.name: row.bytes_after for row in report.plan.quantized}
    table = inspect_table(shown)
    bits = f"{planned['bits_per_weight']:.3f}"
    assert f"adapter of rank 4 by eora: 14 layers, {bits} bits per weight of these" in table
    assert "with adapter" in table


def test_export_takes_it_along_or_leaves_it_out(own: Path, tmp_path: Path) -> None:
    folder = own
    export(folder, out=tmp_path / "gptq", format="gptq")
    first, second = (path / "adapter" for path in (folder, tmp_path / "gptq"))
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert same_logits(*(load_quantized(p, device="cpu") for p in (folder, tmp_path / "gptq")))
    plain = export(folder, out=tmp_path / "plain", format="gptq", no_adapter=True)
    assert "adapter" not in plain and not (tmp_path / "plain" / "adapter").exists()
    without = load_quantized(folder, device="cpu", adapter=False)
    assert same_logits(without, open_model(tmp_path / "plain", device="cpu"))


def test_svd_first_quantizes_the_rest(tmp_path: Path) -> None:
    rule = recipe({"adapter_rank": 8, "adapter": "svd_first"})
    model, _, folder = checkpoint(tmp_path, rule, "compressed-tensors")
    reader = CheckpointReader(tmp_path / "source")
    for name, layer in compressed_linears(model).items():
        weight = reader.tensor(f"{name}.weight").float()
        assert layer.adapter is not None
        part = layer.adapter.low_rank().matrix()
        rest = weight - part
        values = torch.linalg.svdvals(weight)
        assert float(rest.square().sum()) == pytest.approx(
            float(values[8:].square().sum()), rel=0.01
        )
        assert layer.quantized().equals(rtn(rest, QuantScheme(4, 32)))
    assert same_logits(model, load_quantized(folder, device="cpu"))
    assert "and must: they hold a part of the weights" in (folder / "README.md").read_text()
    for format in ("gptq", "gguf"):
        with pytest.raises(ValueError, match="its adapter holds a part of the weights"):
            export(folder, out=tmp_path / "out", format=format, no_adapter=True)


def test_fused_layers_share_the_scale_of_what_remains(tmp_path: Path) -> None:
    step = {"method": "rtn", "grid": "nvfp4", "activations": "dynamic"}
    adapter = {"adapter_rank": 8, "adapter": "svd_first"}
    rule = Recipe.from_dict({"name": "test", "step": [step | adapter]})
    model, _, folder = checkpoint(tmp_path, rule, "compressed-tensors")
    reader, layers = CheckpointReader(tmp_path / "source"), compressed_linears(model)
    for block in ("model.layers.0", "model.layers.1"):
        names = [f"{block}.self_attn.{part}_proj" for part in "qkv"]
        weights = [layers[name].quantized() for name in names]
        assert all(isinstance(weight, TableWeight) for weight in weights)
        divisors = {float(weight.divisor) for weight in weights}  # type: ignore[attr-defined]
        largest = 0.0
        for name in names:
            own = layers[name].adapter
            assert own is not None
            rest = reader.tensor(f"{name}.weight").float() - own.low_rank().matrix()
            largest = max(largest, float(rest.abs().max()))
        assert divisors == {divisor_of(largest, GRIDS["nvfp4"])}
    assert same_logits(model, load_quantized(folder, device="cpu"))


@pytest.mark.parametrize("format", ["gguf", "onnx", "onnx-genai"])
def test_formats_without_a_place_say_what_to_do(own: Path, tmp_path: Path, format: str) -> None:
    remedy = "convert_lora_to_gguf.py of llama.cpp" if format == "gguf" else "--no-adapter"
    with pytest.raises(ValueError, match=f"as {format}: it has an adapter, .*{remedy}"):
        export(own, out=tmp_path / "out", format=format)
    assert not (tmp_path / "out").exists()


def test_a_packed_folder_has_it_too(own: Path, tmp_path: Path) -> None:
    pack(own, out=tmp_path / "packed", threads=1)
    packed = load_quantized(tmp_path / "packed", device="cpu")
    assert same_logits(load_quantized(own, device="cpu"), packed)
    assert inspect(tmp_path / "packed")["adapter"] == inspect(own)["adapter"]


def test_the_model_card_says_how_to_use_it(own: Path) -> None:
    card = (own / "README.md").read_text()
    assert "- Adapter of rank 4 by eora: 14 layers" in card
    assert "vllm serve path/to/this/checkpoint --enable-lora --max-lora-rank 8" in card
    assert 'PeftModel.from_pretrained(model, "path/to/this/checkpoint/adapter")' in card
    shutil.rmtree(own / "adapter")
    record = json.loads((own / "vlpress.json").read_text())
    (own / "vlpress.json").write_text(json.dumps(without_adapter(record)))
    write_model_card(own, Base("base", {}))
    assert "dapter" not in (own / "README.md").read_text()


def test_a_missing_or_foreign_adapter_is_refused(own: Path) -> None:
    folder = own
    config, weights = (
        folder / "adapter" / name for name in ("adapter_config.json", "adapter_model.safetensors")
    )
    good, tensors = json.loads(config.read_text()), load_file(weights)
    for change, message in (
        ({"lora_alpha": 8}, "lora_alpha is 8 with r 4; allowed: equal numbers"),
        ({"use_dora": True}, "use_dora is set"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"r": 8, "lora_alpha": 8}, r"lora_A.weight is torch.bfloat16 \[4, \d+\]; expected floats"),
    ):
        config.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            load_quantized(folder, device="cpu")
    config.write_text(json.dumps(good))
    first = min(tensors)
    for renamed, message in (
        (first.replace("layers.0", "layers.7"), "belongs to no linear layer of this model"),
        (first.replace("lora_A", "lora_C"), "belongs to no linear layer of this model"),
    ):
        save_file({renamed if k == first else k: v for k, v in tensors.items()}, weights)
        with pytest.raises(ValueError, match=message):
            load_quantized(folder, device="cpu")
    save_file({k: v for k, v in tensors.items() if k != first}, weights)
    with pytest.raises(ValueError, match="is missing; expected floats"):
        load_quantized(folder, device="cpu")
    shutil.rmtree(folder / "adapter")
    with pytest.raises(ValueError, match=r"vlpress\.json names an adapter, and there is no folder"):
        load_quantized(folder, device="cpu")
    load_quantized(folder, device="cpu", adapter=False)
