import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from calib_models import prompts, random_model, raw_config, write_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from vlpress.model.qwen_vl import QwenVL
from vlpress.quant.affine import QuantizedWeight
from vlpress.quant.formats import gptq as gptq_format
from vlpress.quant.formats.gptq import Settings, decode, encode
from vlpress.quant.pipeline import (
    is_quantized,
    load_quantized,
    open_model,
    quantize_,
    save_quantized,
)
from vlpress.quant.recipe import Recipe
from vlpress.quant.report import QuantReport
from vlpress.quant.rtn import rtn
from vlpress.quant.scheme import QuantScheme
from vlpress.quant.targets import quantized_layers

Exported = tuple[QwenVL, QuantReport, Path, Path]


def recipe(**step: Any) -> Recipe:
    base = {"method": "gptq", "bits": 4, "group_size": 32}
    return Recipe.from_dict({"name": "test", "step": [base | step]})


def export(
    tmp_path: Path,
    rule: Recipe,
    *,
    raw: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.bfloat16,
    **source_form: Any,
) -> Exported:
    raw = (raw or raw_config()) | {"torch_dtype": str(dtype).removeprefix("torch.")}
    model = random_model(raw, dtype=dtype)
    source = write_checkpoint(tmp_path / "source", model, **source_form)
    report = quantize_(model, rule, prompts(model.config))
    save_quantized(model, report, source, tmp_path / "out")
    return model, report, source, tmp_path / "out"


def all_tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def packed_by_hand(weight: QuantizedWeight) -> dict[str, Tensor]:
    """The layout of docs/format.md written out element by element, sharing no code."""
    bits = weight.scheme.bits
    rows, columns = weight.integers.shape
    groups = weight.scales.shape[1]

    def words(values: list[int]) -> list[int]:
        stream = sum(value << (bits * k) for k, value in enumerate(values))
        out = [(stream >> (32 * w)) & 0xFFFFFFFF for w in range(len(values) * bits // 32)]
        return [w - 2**32 if w >= 2**31 else w for w in out]

    qweight = [words(weight.integers[n].tolist()) for n in range(rows)]
    qzeros = [words([int(z) - 1 for z in weight.zero_points[:, g]]) for g in range(groups)]
    return {
        "qweight": torch.tensor(qweight, dtype=torch.int32).t(),
        "qzeros": torch.tensor(qzeros, dtype=torch.int32),
        "scales": weight.scales.t().half(),
        "g_idx": torch.tensor([k // (columns // groups) for k in range(columns)]).int(),
    }


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, -1])
def test_layout_by_hand(bits: int, group_size: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = rtn(torch.randn(96, 64, generator=generator), QuantScheme(bits, group_size))
    tensors, expected = encode(weight), packed_by_hand(weight)
    assert set(tensors) == set(expected)
    for part, tensor in tensors.items():
        assert tensor.dtype == expected[part].dtype
        assert torch.equal(tensor, expected[part])
    assert decode(tensors, Settings(weight.scheme, True), "x").equals(weight)


@pytest.mark.parametrize(
    ("bits", "word"), [(4, 0x77777777), (8, 0x7F7F7F7F), (3, 0b11011011011011011011011011011011)]
)
def test_symmetric_zero_points_are_stored_minus_one(bits: int, word: int) -> None:
    weight = rtn(torch.randn(32, 64), QuantScheme(bits, 32))
    assert int(encode(weight)["qzeros"][0, 0]) & 0xFFFFFFFF == word


GOLDEN = {
    # q_proj: K = 64, N = 64; k_proj and v_proj: N = 32; o_proj has no bias; G = 2
    "self_attn.q_proj": ((8, 64), (2, 8), (2, 64), (64,), (64,)),
    "self_attn.k_proj": ((8, 32), (2, 4), (2, 32), (64,), (32,)),
    "self_attn.v_proj": ((8, 32), (2, 4), (2, 32), (64,), (32,)),
    "self_attn.o_proj": ((8, 64), (2, 8), (2, 64), (64,), None),
    "mlp.gate_proj": ((8, 128), (2, 16), (2, 128), (64,), None),
    "mlp.up_proj": ((8, 128), (2, 16), (2, 128), (64,), None),
    "mlp.down_proj": ((16, 64), (4, 8), (4, 64), (128,), None),
}


def test_golden_folder(tmp_path: Path) -> None:
    model, _, source, out = export(tmp_path, recipe())
    tensors = all_tensors(out)
    original = all_tensors(source)
    parts = ("qweight", "qzeros", "scales", "g_idx", "bias")
    dtypes = (torch.int32, torch.int32, torch.float16, torch.int32, torch.float16)
    expected = {name for name in original if "model.layers" not in name or "norm" in name}
    for block in range(2):
        for linear, shapes in GOLDEN.items():
            name = f"model.layers.{block}.{linear}"
            layer = quantized_layers(model)[name]
            by_hand = packed_by_hand(layer.quantized())
            for part, shape, dtype in zip(parts, shapes, dtypes, strict=True):
                if shape is None:
                    continue
                expected.add(f"{name}.{part}")
                tensor = tensors[f"{name}.{part}"]
                assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)
                if part == "bias":
                    assert torch.equal(tensor, original[f"{name}.bias"].half())
                else:
                    assert torch.equal(tensor, by_hand[part])
            assert set(tensors[f"{name}.qzeros"].flatten().tolist()) == {0x77777777}
    assert set(tensors) == expected
    for name in expected & set(original) - {n for n in expected if n.endswith("_proj.bias")}:
        assert tensors[name].dtype == original[name].dtype == torch.bfloat16
        assert torch.equal(tensors[name], original[name])
    with safe_open(out / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_config_tells_the_truth(tmp_path: Path) -> None:
    _, _, source, out = export(tmp_path, recipe())
    raw = json.loads((source / "config.json").read_text())
    written = json.loads((out / "config.json").read_text())
    config = written.pop("quantization_config")
    assert written == raw
    assert list(written) == list(raw)
    assert config == {
        "bits": 4,
        "group_size": 32,
        "damp_percent": 0.01,
        "desc_act": False,
        "static_groups": True,
        "sym": True,
        "true_sequential": True,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "dataset": None,
        "lm_head": False,
        "modules_in_block_to_quantize": [
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
            ["self_attn.o_proj"],
            ["mlp.gate_proj", "mlp.up_proj"],
            ["mlp.down_proj"],
        ],
        "dynamic": {r"-:.*visual\..*": {}, r"-:.*lm_head.*": {}},
    }
    assert json.loads((out / "quantize_config.json").read_text()) == config


def test_kept_decoder_layers_get_rules(tmp_path: Path) -> None:
    import re

    rule = recipe(ignore=["model.layers.0.self_attn.*", "model.layers.1.mlp.down_proj"])
    *_, out = export(tmp_path, rule)
    config = json.loads((out / "quantize_config.json").read_text())
    rules = [key.removeprefix("-:") for key in config["dynamic"]]

    def left_out(name: str) -> bool:
        return any(re.match(rule, name) for rule in rules)

    for prefix in ("model.", "model.language_model.", "language_model.model."):
        assert left_out(f"{prefix}layers.0.self_attn.o_proj")
        assert left_out(f"{prefix}layers.0.self_attn.qkv_proj")  # as engines fuse it
        assert left_out(f"{prefix}layers.1.mlp.down_proj")
        assert not left_out(f"{prefix}layers.1.self_attn.qkv_proj")
        assert not left_out(f"{prefix}layers.0.mlp.down_proj")
        assert not left_out(f"{prefix}layers.10.self_attn.o_proj")
    assert left_out("visual.blocks.0.mlp.down_proj")
    assert left_out("model.visual.merger.mlp.0")


@pytest.mark.parametrize("true_sequential", [False, True])
def test_true_sequential_is_reported(tmp_path: Path, true_sequential: bool) -> None:
    rule = Recipe.from_dict(
        recipe().to_dict() | {"calibration": {"true_sequential": true_sequential}}
    )
    *_, out = export(tmp_path, rule)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    assert config["true_sequential"] is true_sequential


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_reloading_gives_the_same_logits(
    tmp_path: Path, bits: int, method: str, dtype: torch.dtype
) -> None:
    model, _, _, out = export(tmp_path, recipe(bits=bits, method=method), dtype=dtype)
    loaded = load_quantized(out, device="cpu")
    assert loaded.dtype == dtype
    with torch.no_grad():
        samples = prompts(model.config)
        for expected, found in zip(model(samples), loaded(samples), strict=True):
            assert torch.equal(expected, found)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [False, True])
def test_names_and_shards_of_the_source_are_kept(
    tmp_path: Path, family: str, nested: bool, shards: int, tied: bool
) -> None:
    raw = raw_config(family, tied=tied)
    model, _, source, out = export(tmp_path, recipe(), raw=raw, nested=nested, shards=shards)
    before, after = all_tensors(source), all_tensors(out)
    prefix = "model.language_model.layers" if nested else "model.layers"
    for name in before:
        if name.startswith(prefix) and name.endswith("_proj.weight"):
            assert name not in after
            assert name.replace(".weight", ".qweight") in after
        else:
            assert name in after
    index = out / "model.safetensors.index.json"
    assert sorted(p.name for p in out.glob("*.safetensors")) == sorted(
        p.name for p in source.glob("*.safetensors")
    )
    assert index.is_file() == (shards > 1)
    if shards > 1:
        data = json.loads(index.read_text())
        assert set(data["weight_map"]) == set(after)
        sizes = sum(t.numel() * t.element_size() for t in after.values())
        assert data["metadata"]["total_size"] == sizes
    with torch.no_grad():
        samples = prompts(model.config)
        for expected, found in zip(
            model(samples), load_quantized(out, device="cpu")(samples), strict=True
        ):
            assert torch.equal(expected, found)


def test_sizes_in_the_report_are_those_of_the_files(tmp_path: Path) -> None:
    _, report, source, out = export(tmp_path, recipe())

    def size(folder: Path) -> int:
        return sum(t.numel() * t.element_size() for t in all_tensors(folder).values())

    assert report.base_bytes == size(source)
    assert report.candidate_bytes == size(out)
    packed = [
        tensor.numel() * tensor.element_size()
        for name, tensor in all_tensors(out).items()
        if name.endswith(("qweight", "qzeros", "scales", "g_idx"))
    ]
    weights = sum(row.spec.weights for row in report.plan.quantized)
    assert report.bits_per_weight == pytest.approx(8 * sum(packed) / weights)
    assert json.loads((out / "vlpress.json").read_text()) == report.to_dict()


def test_side_files_are_copied_byte_for_byte(tmp_path: Path) -> None:
    *_, source, out = export(tmp_path, recipe())
    for name in ("tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert sorted(path.name for path in out.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "quantize_config.json",
        "tokenizer_config.json",
        "vlpress.json",
    ]


def test_same_input_same_bytes(tmp_path: Path) -> None:
    *_, first = export(tmp_path / "a", recipe(), shards=2)
    *_, second = export(tmp_path / "b", recipe(), shards=2)
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_folder_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, report, source, out = export(tmp_path, recipe())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="out exists; give another or ask to overwrite"):
        save_quantized(model, report, source, out)

    def fail(*args: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(gptq_format, "copy_side_files", fail)
    for target in (out, tmp_path / "new"):
        with pytest.raises(RuntimeError, match="disk full"):
            save_quantized(model, report, source, target, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    monkeypatch.undo()
    (out / "old.txt").write_text("old")
    save_quantized(model, report, source, out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_tied_head_is_not_written_twice(tmp_path: Path) -> None:
    model = random_model(raw_config(tied=True))
    source = write_checkpoint(tmp_path / "source", model)
    tensors = all_tensors(source)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, source / "model.safetensors")
    report = quantize_(model, recipe(method="rtn"))
    save_quantized(model, report, source, tmp_path / "out")
    written = all_tensors(tmp_path / "out")
    assert "lm_head.weight" not in written
    assert report.candidate_bytes == sum(t.numel() * t.element_size() for t in written.values())
    save_file(written | {"lm_head.weight": head + 1}, tmp_path / "out" / "model.safetensors")
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from the embedding"):
        load_quantized(tmp_path / "out", device="cpu")


def test_files_have_the_rights_of_any_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        *_, out = export(tmp_path, recipe(method="rtn"), shards=2)
    finally:
        os.umask(before)
    assert out.stat().st_mode & 0o777 == 0o750
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o640}


def test_source_is_never_written(tmp_path: Path) -> None:
    model, report, source, _ = export(tmp_path, recipe())
    for out in (source, tmp_path):
        with pytest.raises(ValueError, match="is or holds the source, which is never written to"):
            save_quantized(model, report, source, out, overwrite=True)
    assert (source / "model.safetensors").is_file()


def test_wrong_source_or_model_is_refused(tmp_path: Path) -> None:
    model, report, source, _ = export(tmp_path, recipe())
    other = write_checkpoint(tmp_path / "other", random_model(seed=1))
    with pytest.raises(ValueError, match="differs between the model and its source"):
        save_quantized(model, report, other, tmp_path / "new")
    with pytest.raises(ValueError, match="model and report disagree about model"):
        save_quantized(random_model(), report, source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_packing_is_checked_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, report, source, _ = export(tmp_path, recipe())

    def broken(weight: QuantizedWeight) -> dict[str, Tensor]:
        tensors = encode(weight)
        tensors["qweight"][0, 0] ^= 1
        return tensors

    monkeypatch.setattr(gptq_format, "encode", broken)
    with pytest.raises(RuntimeError, match="packed and unpacked weights differ"):
        save_quantized(model, report, source, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_open_model_tells_the_kinds_apart(tmp_path: Path) -> None:
    _, _, source, out = export(tmp_path, recipe())
    assert is_quantized(out)
    assert not is_quantized(source)
    assert len(quantized_layers(open_model(out, device="cpu"))) == 14
    assert quantized_layers(open_model(source, device="cpu", dtype="fp32")) == {}
    assert open_model(out, device="cpu", dtype=torch.float32).dtype == torch.float32
    with pytest.raises(ValueError, match="dtype 'int8' is unknown"):
        load_quantized(out, device="cpu", dtype="int8")
    with pytest.raises(ValueError, match="is not quantized; load it with load_model"):
        load_quantized(source)


def edit(out: Path, **changes: Any) -> None:
    raw = json.loads((out / "config.json").read_text())
    raw["quantization_config"] |= changes
    (out / "config.json").write_text(json.dumps(raw))


def test_reads_v2(tmp_path: Path) -> None:
    model, _, _, out = export(tmp_path, recipe())
    tensors = all_tensors(out)
    for name in tensors:
        if name.endswith("qzeros"):
            tensors[name] += 0x11111111
            assert int(tensors[name][0, 0]) & 0xFFFFFFFF == 0x88888888
    save_file(tensors, out / "model.safetensors")
    edit(out, checkpoint_format="gptq_v2")
    with torch.no_grad():
        samples = prompts(model.config)
        for expected, found in zip(
            model(samples), load_quantized(out, device="cpu")(samples), strict=True
        ):
            assert torch.equal(expected, found)


def test_reads_act_order_of_other_writers(tmp_path: Path) -> None:
    """desc_act: groups follow the solving order, so `g_idx` is not monotonic."""
    model, _, _, out = export(tmp_path, recipe())
    name = "model.layers.0.mlp.down_proj"
    tensors = all_tensors(out)
    weight = quantized_layers(model)[name].quantized()
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    shuffled = QuantizedWeight(
        weight.integers,
        weight.scales,
        weight.zero_points,
        weight.scheme,
        weight.column_groups()[order],
    )
    tensors |= {f"{name}.{part}": tensor for part, tensor in encode(shuffled).items()}
    save_file(tensors, out / "model.safetensors")
    edit(out, desc_act=True, static_groups=False)
    layer = quantized_layers(load_quantized(out, device="cpu"))[name]
    assert layer.group_index is not None
    assert torch.equal(layer.quantized().dequantize(), shuffled.dequantize())
    assert not torch.equal(layer.quantized().dequantize(), weight.dequantize())


def test_loaded_layers_outlive_their_file(tmp_path: Path) -> None:
    """Nothing that a layer keeps may be a view of the file."""
    *_, out = export(tmp_path, recipe(method="rtn"), dtype=torch.float16)
    name = "model.layers.0.self_attn.q_proj"
    tensors = all_tensors(out)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    tensors[f"{name}.g_idx"] = tensors[f"{name}.g_idx"][order]
    save_file(tensors, out / "model.safetensors")
    loaded = load_quantized(out, device="cpu")
    (out / "model.safetensors").write_bytes(b"")
    layer = quantized_layers(loaded)[name]
    assert layer.group_index is not None and layer.bias is not None
    assert torch.equal(layer.group_index, tensors[f"{name}.g_idx"])
    assert torch.equal(layer.bias, tensors[f"{name}.bias"])
    assert all(bool(torch.isfinite(part).all()) for part in loaded.state_dict().values())


def test_reads_zero_points_that_wrapped() -> None:
    weight = rtn(torch.rand(32, 32), QuantScheme(4, 32, symmetric=False))
    assert set(weight.zero_points.flatten().tolist()) == {0}
    with pytest.raises(ValueError, match="a zero point is 0"):
        encode(weight)
    tensors = packed_by_hand(rtn(torch.rand(32, 32), QuantScheme(4, 32)))
    tensors["qzeros"].fill_(-1)  # 0 - 1 in every nibble
    found = decode(tensors, Settings(weight.scheme, True), "x")
    assert set(found.zero_points.flatten().tolist()) == {0}


def test_missing_g_idx_and_empty_bias_are_accepted(tmp_path: Path) -> None:
    model, _, _, out = export(tmp_path, recipe())
    tensors = {n: t for n, t in all_tensors(out).items() if not n.endswith("g_idx")}
    name = "model.layers.0.self_attn.o_proj.bias"
    tensors[name] = torch.zeros(64, dtype=torch.float16)
    save_file(tensors, out / "model.safetensors")
    loaded = load_quantized(out, device="cpu")
    with torch.no_grad():
        sample = prompts(model.config)[:1]
        assert torch.equal(model(sample)[0], loaded(sample)[0])
    tensors[name] = torch.ones(64, dtype=torch.float16)
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(ValueError, match=r"o_proj\.bias is not zero"):
        load_quantized(out, device="cpu")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "awq"}, "quant_method is 'awq'; allowed is gptq"),
        ({"checkpoint_format": "marlin"}, "checkpoint_format is 'marlin'; allowed are gptq"),
        ({"bits": None}, "bits is None; a number is needed"),
        ({"bits": 5}, "bits is 5; allowed are 2, 3, 4, 8"),
        ({"pack_dtype": "int16"}, "pack_dtype is 'int16'"),
        ({"dynamic": {r"+:.*down_proj": {"bits": 8}}}, r"dynamic rule '\+:\.\*down_proj'"),
        ({"bits": 8}, r"qzeros is torch.int32 \[4, 8\]; expected torch.int32 \[2, 16\]"),
        ({"group_size": 64}, r"qzeros is torch.int32 \[4, 8\]; expected torch.int32 \[2, 8\]"),
    ],
)
def test_unknown_configurations_are_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    *_, out = export(tmp_path, recipe(method="rtn"))
    edit(out, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        load_quantized(out, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("qzeros", None, r"down_proj\.qzeros is missing"),
        ("g_idx", lambda t: t + 3, r"g_idx runs from 3 to 6, but there are 4 groups"),
        ("scales", lambda t: t[:2].contiguous(), r"scales is torch\.float16 \[2, 64\]; expected"),
        ("qweight", lambda t: t.float(), r"qweight is torch\.float32"),
        ("extra", lambda t: torch.ones(1), r"down_proj\.extra is unknown to this model"),
    ],
)
def test_damaged_layers_are_refused(tmp_path: Path, name: str, change: Any, message: str) -> None:
    *_, out = export(tmp_path, recipe(method="rtn"))
    tensors = all_tensors(out)
    key = f"model.layers.0.mlp.down_proj.{name}"
    if change is None:
        del tensors[key]
    else:
        tensors[key] = change(tensors.get(key))
    save_file(tensors, out / "model.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        load_quantized(out, device="cpu")
    assert str(caught.value).startswith(f"{out}: ")


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    *_, out = export(tmp_path, recipe(method="rtn"))
    raw = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 1}))
    with pytest.raises(ValueError, match="has no such layer"):
        load_quantized(out, device="cpu")
    (out / "config.json").write_text(json.dumps(raw | {"intermediate_size": 160}))
    with pytest.raises(ValueError, match="they belong to different models"):
        load_quantized(out, device="cpu")
