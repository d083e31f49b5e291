"""The module for multi-token prediction: copied, excluded by name, counted, rounded on request."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from blockwise_jobs import finish, job
from tiny_models import prompts, small_config, small_model, write_checkpoint_folder
from torch import Tensor

from vlpress.model.byte_parts import checkpoint_bytes
from vlpress.model.carried import CarriedTensors
from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.config import ModelConfig
from vlpress.model.mtp import MultiTokenPredictor, load_predictor
from vlpress.quant.api import inspect_checkpoint
from vlpress.quant.checkpoint.draft_module import open_predictor
from vlpress.quant.checkpoint.export import export
from vlpress.quant.checkpoint.loading import load_quantized
from vlpress.quant.checkpoint.safetensors_folder.reading import QuantizedCheckpoint
from vlpress.quant.checkpoint.verify import first_tokens
from vlpress.quant.driver.pipeline import make_plan, quantize_, save_quantized
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.pack import pack, unpack
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme

pytestmark = pytest.mark.usefixtures("reference_kernel")

RTN: dict[str, Any] = {"method": "rtn", "bits": 4, "group_size": 32}
FP8: dict[str, Any] = {"method": "rtn", "grid": "fp8", "group_size": 32, "scale_rows": 32}
MTP: dict[str, Any] = RTN | {"targets": ["mtp"]}
LAYER = "mtp.layers.0"
DENSE = (
    "mtp.fc",
    *(f"{LAYER}.self_attn.{name}_proj" for name in "qkvo"),
    *(f"{LAYER}.mlp.{name}_proj" for name in ("gate", "up", "down")),
)
EXPERTS = tuple(
    f"{LAYER}.mlp.experts.{e}.{n}_proj" for e in range(4) for n in ("gate", "up", "down")
)
SPARSE = (
    *DENSE[:5],
    *(f"{LAYER}.mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")),
    *EXPERTS,
)
KEPT = (f"{LAYER}.mlp.gate", f"{LAYER}.mlp.shared_expert_gate")
LAYERS = {"qwen3_5": DENSE, "qwen3_5_moe": (*SPARSE, *KEPT)}


def write_source(folder: Path, family: str = "qwen3_5", *, shards: int = 3) -> Path:
    raw = small_config(family, mtp_num_hidden_layers=1) | {"torch_dtype": "bfloat16"}
    model = small_model(raw, dtype=torch.bfloat16)
    predictor = MultiTokenPredictor(model.config.text)
    generator = torch.Generator().manual_seed(5)
    extra = {
        f"mtp.{name}": torch.randn(tensor.shape, generator=generator).bfloat16()
        for name, tensor in predictor.state_dict().items()
    }
    return write_checkpoint_folder(
        folder, model, naming="new", shards=shards, tokenizer=False, extra=extra
    )


def recipe(*steps: dict[str, Any]) -> Recipe:
    return Recipe.from_dict({"name": "test", "step": list(steps)})


def quantized(source: Path, out: Path, format: str = "auto") -> Path:
    """Quantize in memory and save."""
    model = small_model(json.loads((source / "config.json").read_text()), dtype=torch.bfloat16)
    step = FP8 | {"activations": "dynamic"} if format == "fp8" else RTN
    report = quantize_(model, recipe(step), format=format)
    save_quantized(model, report, source, out, format=format)
    return out


def carried(folder: Path) -> dict[str, tuple[str, Tensor]]:
    """The shard and the value of each carried tensor."""
    reader = CheckpointReader(folder)
    names = [name for name in reader.names() if name.startswith("mtp.")]
    return {name: (reader.file(name), reader.tensor(name)) for name in names}


def assert_same_carried(folder: Path, source: Path) -> None:
    expected, actual = carried(source), carried(folder)
    assert len(expected) >= 15
    assert actual.keys() == expected.keys()
    for name, (file, tensor) in expected.items():
        assert actual[name][0] == file
        assert actual[name][1].dtype == tensor.dtype
        assert torch.equal(actual[name][1], tensor)


def excluded(folder: Path) -> tuple[list[str], list[str]]:
    """The names and the expressions of a checkpoint's exclusion list."""
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    listed: list[str] = config.get("ignore") or config.get("modules_to_not_convert") or []
    rules = [rule.removeprefix("-:") for rule in config.get("dynamic", {}) if rule[:2] == "-:"]
    expressions = [entry.removeprefix("re:") for entry in listed if entry.startswith("re:")]
    return [entry for entry in listed if not entry.startswith("re:")], [*expressions, *rules]


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_a_rounded_module_is_loaded_dequantized(tmp_path: Path, family: str) -> None:
    source = write_source(tmp_path / "source", family)
    samples = prompts(ModelConfig.from_folder(source))[:1]
    finish(job(source, [RTN, MTP], samples), tmp_path / "work", tmp_path / "out")
    out = tmp_path / "out"
    model = load_quantized(out, device="cpu", dtype=torch.float32)
    predictor = open_predictor(out, model)
    original = load_predictor(source, model).state_dict()
    largest = 0.0
    for name, tensor in predictor.state_dict().items():
        error = float((tensor - original[name]).abs().max() / original[name].abs().max())
        rounded = name.endswith("_proj.weight") or ".experts." in name or name == "fc.weight"
        assert (error > 0) == rounded, name
        largest = max(largest, error)
    assert largest < 0.2  # half a step of 4 bits


FORMATS = ("gptq", "gptq_v2", "awq", "compressed-tensors", "fp8")
WHOLE = {"gptq": ".*mtp.*", "gptq_v2": ".*mtp.*", "compressed-tensors": "^mtp.*"}


@pytest.mark.parametrize(
    ("family", "format"),
    [
        ("qwen3_5", "gptq"),
        ("qwen3_5", "awq"),
        ("qwen3_5_moe", "gptq_v2"),
        ("qwen3_5_moe", "compressed-tensors"),
        ("qwen3_5", "fp8"),
    ],
)
def test_tensors_are_copied_and_layers_excluded(family: str, format: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", family)
    out = quantized(source, tmp_path / "out", format)
    assert_same_carried(out, source)
    names, expressions = excluded(out)
    if format in WHOLE:
        assert WHOLE[format] in expressions
    else:
        assert "mtp" in names
    if not format.startswith("gptq"):
        assert set(LAYERS[family]) <= set(names)
    if format in WHOLE:
        own = [each for each in expressions if each != WHOLE[format]]
        fused = [f"{LAYER}.self_attn.qkv_proj", "model.mtp.fc"]
        for name in (*LAYERS[family], *fused):
            assert any(re.match(each, name) for each in own), name
    sample = prompts(load_quantized(out, device="cpu").config)[0]
    assert len(first_tokens(out, sample, 2, device="cpu")) == 2


def test_export_and_pack_keep_them(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    out = quantized(source, tmp_path / "out")
    export(out, tmp_path / "awq", "awq")
    assert_same_carried(tmp_path / "awq", source)
    assert "mtp" in excluded(tmp_path / "awq")[0]
    pack(out, tmp_path / "packed")
    assert_same_carried(tmp_path / "packed", source)
    unpack(tmp_path / "packed", tmp_path / "unpacked")
    for file in (path.name for path in out.glob("*.safetensors")):
        assert (tmp_path / "unpacked" / file).read_bytes() == (out / file).read_bytes()


def test_without_such_tensors_nothing_names_them(tmp_path: Path) -> None:
    """transformers drops the tensors and leaves the entry in config.json."""
    raw = small_config("qwen3_5", mtp_num_hidden_layers=1)
    source = write_checkpoint_folder(tmp_path / "source", small_model(raw), tokenizer=False)
    config = ModelConfig.from_folder(source)
    assert CarriedTensors.of(config, CheckpointReader(source)) == CarriedTensors()
    model = small_model(raw)
    save_quantized(model, quantize_(model, recipe(RTN)), source, tmp_path / "out")
    assert "mtp" not in json.dumps(excluded(tmp_path / "out"))


def test_matrices_that_the_table_does_not_list_are_named_too(tmp_path: Path) -> None:
    model = small_model(small_config("qwen3_5", mtp_num_hidden_layers=1))
    extra = {"mtp.more.weight": torch.ones(8, 4), "mtp.norm.weight": torch.ones(4)}
    source = write_checkpoint_folder(tmp_path / "source", model, tokenizer=False, extra=extra)
    reader = CheckpointReader(source)
    found = CarriedTensors.of(model.config, reader)
    assert found.layers == ("mtp.more",)
    assert dict(found.bytes) == {"mtp.more.weight": 128, "mtp.norm.weight": 16}
    save_quantized(model, quantize_(model, recipe(RTN)), source, tmp_path / "out")
    names, expressions = excluded(tmp_path / "out")
    assert "mtp.more" in names
    assert any(re.match(each, "mtp.more") for each in expressions)


@pytest.mark.parametrize("family", LAYERS)
def test_plan_and_files_count_the_same_bytes(family: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", family)
    reader = CheckpointReader(source)
    config = ModelConfig.from_folder(source)
    found = CarriedTensors.of(config, reader)
    assert set(found.layers) == set(LAYERS[family])
    for steps in ([RTN], [RTN, MTP]):
        plan = job(source, steps, []).plan
        before = checkpoint_bytes(config, reader)
        assert before["mtp"] == sum(found.bytes.values()) > 0
        assert dict(plan.source_parts) == before
        rows = {row.name: row for row in plan.rows if row.spec.part == "mtp"}
        assert set(rows) == set(LAYERS[family])
        assert all("kept, because" in rows[n].fate for n in KEPT if n in rows)
        finish(job(source, steps, []), tmp_path / f"work{len(steps)}", tmp_path / f"{len(steps)}")
        out = tmp_path / f"{len(steps)}"
        after = checkpoint_bytes(config, CheckpointReader(out))
        assert plan.candidate_parts == after
        assert inspect_checkpoint(out)["parts"] == after
        assert (after["mtp"] < before["mtp"]) == (len(steps) == 2)
        record = json.loads((out / "vlpress.json").read_text())
        assert record["size"]["base_parts"]["mtp"] == before["mtp"]


@pytest.mark.parametrize(
    ("family", "format"),
    [("qwen3_5", "gptq"), ("qwen3_5_moe", "compressed-tensors")],
)
def test_rounded_on_request(family: str, format: str, tmp_path: Path) -> None:
    source = write_source(tmp_path / "source", family)
    files = finish(job(source, [RTN, MTP], [], format=format), tmp_path / "work", tmp_path / "out")
    assert files
    checkpoint, original = QuantizedCheckpoint(tmp_path / "out"), carried(source)
    layers = [name for name in LAYERS[family] if name not in KEPT]
    assert set(layers) == {n for n in checkpoint.schemes if n.startswith("mtp.")}
    weight = original["mtp.fc.weight"][1]
    assert checkpoint.weight("mtp.fc").equals(rtn(weight.float(), QuantScheme(4, 32)))
    if EXPERTS[0] in layers:
        stacked = original[f"{LAYER}.mlp.experts.gate_up_proj"][1][2]
        up = checkpoint.weight(f"{LAYER}.mlp.experts.2.up_proj")
        assert up.equals(rtn(stacked[96:].float(), QuantScheme(4, 32)))
    left = carried(tmp_path / "out")
    kept = {n for n in original if n.removesuffix(".weight") in KEPT or "norm" in n}
    assert all(torch.equal(left[name][1], original[name][1]) for name in kept)
    assert not {f"{name}.weight" for name in layers} & left.keys()
    # The exclusion list names what is left, and no expression covers a quantized layer.
    names, expressions = excluded(tmp_path / "out")
    assert {name for name in names if name.startswith("mtp")} == {n for n in KEPT if n in names}
    for name in layers:
        assert not any(re.match(each, name) for each in expressions), name
    model = load_quantized(tmp_path / "out", device="cpu")
    assert not hasattr(model, "mtp")
    assert len(first_tokens(tmp_path / "out", prompts(model.config)[0], 2, device="cpu")) == 2
    other = "gptq_v2" if format == "compressed-tensors" else "compressed-tensors"
    export(tmp_path / "out", tmp_path / "other", other)
    again = QuantizedCheckpoint(tmp_path / "other")
    assert all(again.weight(name).equals(checkpoint.weight(name)) for name in layers)


def test_layers_of_the_decoder_are_not_mistaken_for_them(tmp_path: Path) -> None:
    """`mtp.layers.0` ends as a layer of the decoder does, and may have another scheme."""
    source = write_source(tmp_path / "source")
    steps = [RTN | {"ignore": ["model.layers.0.*"]}, MTP | {"bits": 8}]
    for format in ("gptq", "compressed-tensors"):
        finish(job(source, steps, [], format=format), tmp_path / f"w{format}", tmp_path / format)
        checkpoint = QuantizedCheckpoint(tmp_path / format)
        assert checkpoint.schemes["mtp.layers.0.mlp.up_proj"].bits == 8
        assert checkpoint.schemes["model.layers.1.mlp.up_proj"].bits == 4
        _, expressions = excluded(tmp_path / format)
        assert any(re.match(each, "model.layers.0.mlp.up_proj") for each in expressions)
        assert not any(re.match(each, "mtp.layers.0.mlp.up_proj") for each in expressions)


def refused() -> Iterator[tuple[list[dict[str, Any]], str]]:
    yield [RTN, MTP | {"method": "gptq"}], r"mtp\.fc has method gptq.*allowed: method rtn"
    yield [RTN, MTP | {"bits": 8, "activations": "dynamic"}], r"mtp\.fc .*activations none"
    fp8 = FP8 | {"activations": "dynamic"}
    yield [fp8, fp8 | {"targets": ["mtp"]}], r"mtp\.fc has .*fp8.*activations none"
    split = [MTP | {"targets": ["mtp.*.q_proj"]}, MTP | {"bits": 8, "targets": ["mtp.*.v_proj"]}]
    yield [RTN, *split], r"mtp\.layers\.0\.self_attn\.q_proj"
    yield [RTN | {"targets": ["*"]}, RTN | {"targets": ["mtp.none.*"]}], r"mtp\.none"


def test_what_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source")
    for steps, message in refused():
        with pytest.raises(ValueError, match=message):
            job(source, steps, [])
    # A pattern for all layers of the model does not mean the module.
    plan = job(source, [RTN | {"targets": ["*.q_proj", "*.k_proj", "*.v_proj"]}], []).plan
    assert not [row.name for row in plan.quantized if row.spec.part == "mtp"]
    model = small_model(json.loads((source / "config.json").read_text()))
    with pytest.raises(ValueError, match=r"mtp\.\*.*quantize_"):
        quantize_(model, recipe(RTN, MTP))
    with pytest.raises(ValueError, match=r"mtp\.\*"):
        make_plan(small_model(small_config("qwen3_vl")).config, recipe(RTN, MTP))
    assert "mtp" not in {row.spec.part for row in make_plan(model.config, recipe(RTN)).rows}
