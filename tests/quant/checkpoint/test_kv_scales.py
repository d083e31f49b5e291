"""Scales of an FP8 KV cache: calibrated, written, read from any writer, and used."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from blockwise_jobs import STEPS, PowerCutError, contents, cut_after, finish, job, source_of
from safetensors.torch import load_file, save_file
from tiny_models import DENSE, prompts

from vlpress.eval.fidelity.kv_ranges import kv_ranges
from vlpress.model.config import ModelConfig
from vlpress.model.kv_quant.scales import KVScales
from vlpress.model.loading import load_model
from vlpress.model.qwen_vl import QwenVL
from vlpress.quant import api
from vlpress.quant.checkpoint.export import export
from vlpress.quant.checkpoint.loading import load_quantized, open_model
from vlpress.quant.checkpoint.saving import check_format
from vlpress.quant.driver.pipeline import quantize_, save_quantized
from vlpress.quant.plan.plan import make_plan
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.runtime.description import describe_cache

FP8 = {"bits": 8, "type": "fp8"}
RTN = [{"method": "rtn", "bits": 4, "group_size": 32, "targets": ["model.layers.*"]}]


@pytest.fixture(scope="module", params=DENSE)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a checkpoint with calibrated scales; its source lies beside it."""
    folder = tmp_path_factory.mktemp(request.param)
    source = source_of(folder, request.param)
    samples = prompts(ModelConfig.from_folder(source))
    finish(job(source, RTN, samples, kv_cache=FP8), folder / "work", folder / "out")
    return folder / "out"


def names_of(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path / "model.safetensors")


def test_scales_are_those_of_the_largest_keys_and_values(written: Path) -> None:
    model = load_quantized(written, device="cpu")
    samples = prompts(model.config)
    with torch.inference_mode():
        features = [model.encode(sample.visuals) for sample in samples]
    record = json.loads((written / "vlpress.json").read_text())["kv_cache"]
    assert record["outlier_ratio"] == 16
    ranges = kv_ranges(model, samples, features)
    assert model.cache_scales is not None and model.cache_type == "fp8"
    layers = len(model.config.text.cached_layers)
    assert len(ranges) == len(model.cache_scales) == len(record["layers"]) == layers
    for measured, scales, stored in zip(ranges, model.cache_scales, record["layers"], strict=True):
        # The run computes with dequantized layers, the loaded model with kernels.
        assert stored["key_max"] == pytest.approx(measured.key_max, rel=0.03)
        assert stored["value_max"] == pytest.approx(measured.value_max, rel=0.03)
        assert scales == KVScales(stored["k_scale"], stored["v_scale"])
        assert scales.key == pytest.approx(stored["key_max"] / 448, rel=2**-8)
        assert scales.value == pytest.approx(stored["value_max"] / 448, rel=2**-8)


def test_files_are_as_the_library_reads_them(written: Path) -> None:
    tensors = names_of(written)
    scales = {name: t for name, t in tensors.items() if name.endswith(("k_scale", "v_scale"))}
    anchors = [
        name for name in names_of(written.parent / "source") if name.endswith("k_proj.weight")
    ]
    attention = [name.removesuffix(".k_proj.weight") for name in anchors]
    assert set(scales) == {f"{path}.{kind}_scale" for path in attention for kind in "kv"}
    assert {(tuple(t.shape), t.dtype) for t in scales.values()} == {((1,), torch.bfloat16)}
    config = json.loads((written / "config.json").read_text())["quantization_config"]
    library = pytest.importorskip("compressed_tensors.quantization")
    parsed = library.QuantizationConfig.model_validate(config).kv_cache_scheme
    assert (parsed.num_bits, parsed.type, parsed.strategy) == (8, "float", "tensor")
    assert parsed.symmetric and not parsed.dynamic
    size = sum(t.nbytes for t in tensors.values())
    assert json.loads((written / "vlpress.json").read_text())["size"]["candidate_bytes"] == size


def test_the_plan_counts_their_bytes(tmp_path: Path) -> None:
    config = ModelConfig.from_folder(source_of(tmp_path))
    plans = [
        make_plan(config, Recipe.from_dict({"step": RTN, **top})) for top in ({}, {"kv_cache": FP8})
    ]
    assert plans[1].candidate_bytes - plans[0].candidate_bytes == 2 * 2 * 2
    assert plans[1].calibrated and not plans[0].calibrated
    assert plans[1].to_dict()["kv_cache"] == FP8 and "kv_cache" not in plans[0].to_dict()


@pytest.mark.parametrize("name", ["gptq", "gptq_v2", "awq", "fp8"])
def test_other_formats_refuse_them_in_one_line(tmp_path: Path, name: str) -> None:
    steps: list[dict[str, Any]] = [{**RTN[0], "symmetric": name != "awq"}]
    if name == "fp8":
        block = {"grid": "fp8", "group_size": 32, "scale_rows": 32, "activations": "dynamic"}
        steps = [{"method": "rtn", **block}]
    config = ModelConfig.from_folder(source_of(tmp_path))
    check_format(make_plan(config, Recipe.from_dict({"step": steps}), format=name), name)
    plan = make_plan(config, Recipe.from_dict({"step": steps, "kv_cache": FP8}), format=name)
    with pytest.raises(ValueError, match=rf"kv_cache.*{name}.*compressed-tensors") as error:
        check_format(plan, name)
    assert "\n" not in str(error.value)


def test_exports_keep_or_refuse_them(written: Path, tmp_path: Path) -> None:
    export(written, tmp_path / "same", "compressed-tensors")
    assert contents(tmp_path / "same") == contents(written)
    with pytest.raises(ValueError, match=r"kv_cache.*gptq"):
        export(written, tmp_path / "gptq", "gptq")
    assert api.inspect_checkpoint(written)["kv_cache"]["layers"]


@pytest.mark.parametrize("stride", [12, pytest.param(7, marks=pytest.mark.slow)])
def test_a_resumed_run_has_the_same_scales(
    tmp_path: Path, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_of(tmp_path)
    samples = prompts(ModelConfig.from_folder(source))
    steps = STEPS["one block"]  # the other layers are calibrated for their cache alone

    def run(work: str, out: Path) -> dict[str, bytes]:
        return finish(job(source, steps, samples, kv_cache=FP8), tmp_path / work, out)

    expected, out, cuts = run("whole", tmp_path / "expected"), tmp_path / "out", 0
    assert len([n for n in names_of(tmp_path / "expected") if n.endswith("k_scale")]) == 2
    while not out.exists():
        with monkeypatch.context() as patch:
            cut_after(stride + cuts, patch)
            try:
                run("cut", out)
            except PowerCutError:
                cuts += 1
    assert cuts > 0 and contents(out) == expected
    model = load_model(source, device="cpu")
    report = quantize_(
        model, Recipe.from_dict({"name": "test", "step": steps, "kv_cache": FP8}), samples
    )
    save_quantized(model, report, source, tmp_path / "memory")
    assert contents(tmp_path / "memory") == expected


def rewrite(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = names_of(folder)
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def copied(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = source_of(tmp_path)
    samples = prompts(ModelConfig.from_folder(source))
    finish(job(source, RTN, samples[:1], kv_cache=FP8), tmp_path / "work", tmp_path / "out")
    return tmp_path / "out"


def scales_of(folder: Path) -> list[KVScales]:
    scales = load_quantized(folder, device="cpu").cache_scales
    assert scales is not None
    return list(scales)


def test_names_of_other_writers_are_read(copied: Path) -> None:
    before = scales_of(copied)
    current = ("k_scale", "v_scale")
    for names in (
        ("k_proj.k_scale", "v_proj.v_scale"),
        ("k_proj.output_scale", "v_proj.output_scale"),
        ("attn.k_scale", "attn.v_scale"),
    ):

        def rename(
            tensors: dict[str, torch.Tensor],
            names: tuple[str, str] = names,
            current: tuple[str, str] = current,
        ) -> None:
            for old, new in zip(current, names, strict=True):
                for name in [n for n in tensors if n.endswith(f"self_attn.{old}")]:
                    path = name.removesuffix(old)
                    tensors[path + new] = tensors.pop(name).float().reshape(())

        assert scales_of(rewrite(copied, rename)) == before
        current = names

    def merge(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.endswith("attn.k_scale")]:
            path = name.removesuffix("attn.k_scale")
            tensors[f"{path}kv_scale"] = tensors.pop(name)
            del tensors[f"{path}attn.v_scale"]

    assert scales_of(rewrite(copied, merge)) == [KVScales(s.key, s.key) for s in before]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(2), r"k_scale is torch.float32 \[2\] .*allowed: one positive"),
        (torch.tensor([0.0]), r"k_scale is torch.float32 \[1\] \[0.0\]"),
        (torch.tensor([torch.inf]), "k_scale is .*inf"),
        (None, r"layers.1.self_attn.k_scale is missing"),
    ],
)
def test_unusable_scales_are_named(copied: Path, value: Any, message: str) -> None:
    def break_one(tensors: dict[str, torch.Tensor]) -> None:
        name = next(n for n in tensors if n.endswith("layers.1.self_attn.k_scale"))
        tensors.pop(name) if value is None else tensors.update({name: value})

    with pytest.raises(ValueError, match=message) as error:
        load_quantized(rewrite(copied, break_one), device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("type", "int"), ("num_bits", 4), ("strategy", "attn_head"), ("dynamic", True)],
)
def test_other_schemes_are_refused(copied: Path, key: str, value: Any) -> None:
    path = copied / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["kv_cache_scheme"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"kv_cache_scheme.{key} is ") as error:
        load_quantized(copied, device="cpu")
    assert "\n" not in str(error.value)


def test_a_cache_follows_the_checkpoint_or_the_option(copied: Path) -> None:
    model = open_model(copied, device="cpu")
    described = describe_cache(model)
    assert isinstance(described, dict) and described["type"] == "fp8"
    assert described["scales"].startswith("of the checkpoint, ")
    prompt = prompts(model.config)[1]

    def logits(model: QwenVL) -> torch.Tensor:
        with torch.inference_mode():
            result: torch.Tensor = model([prompt])[0]
        return result

    plain = open_model(copied, device="cpu", kv_cache="model")
    assert describe_cache(plain) == {"type": "model", "scales": "of the checkpoint, not used"}
    assert not torch.equal(logits(model), logits(plain))
    # The same scales by hand.
    plain.cache_type = "fp8"
    assert torch.equal(logits(model), logits(plain))
    plain.cache_scales = None
    assert not torch.equal(logits(model), logits(plain))
    unit = describe_cache(plain)
    assert isinstance(unit, dict) and unit["scales"] == "unit"


def test_calibration_warns_of_outlier_channels(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = source_of(tmp_path)
    tensors = load_file(source / "model.safetensors")
    bias = next(t for n, t in tensors.items() if n.endswith("layers.1.self_attn.k_proj.bias"))
    bias[15] += 300
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    samples = prompts(ModelConfig.from_folder(source))
    with caplog.at_level(logging.WARNING, logger="vlpress"):
        finish(job(source, RTN, samples, kv_cache=FP8), tmp_path / "work", tmp_path / "out")
    warnings = [r.getMessage() for r in caplog.records if "outlier" in r.getMessage()]
    assert len(warnings) == 1 and "layer 1 (" in warnings[0] and "channel 15)" in warnings[0]
    record = json.loads((tmp_path / "out" / "vlpress.json").read_text())["kv_cache"]["layers"]
    assert record[1]["key_outlier_ratio"] > 16 > record[0]["key_outlier_ratio"]
