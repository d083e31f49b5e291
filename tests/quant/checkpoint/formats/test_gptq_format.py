import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gptq_files import all_tensors, export, packed_by_hand, recipe
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_models import (
    FAMILIES,
    prompts,
    small_config,
    small_model,
    write_small_checkpoint,
)
from torch import Tensor

from vlpress.model.checkpoint import canonical_name
from vlpress.model.families import family_of
from vlpress.quant.checkpoint.formats.gptq import GPTQ
from vlpress.quant.checkpoint.formats.table import FORMATS
from vlpress.quant.checkpoint.safetensors_folder import writing
from vlpress.quant.driver.pipeline import load_quantized, quantize_, save_quantized
from vlpress.quant.methods.affine import QuantizedWeight
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.targets import quantized_layers

pytestmark = pytest.mark.usefixtures("reference_kernel")

V1 = FORMATS["gptq"]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group_size", [32, -1])
def test_layout_by_hand(bits: int, group_size: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    weight = rtn(torch.randn(96, 64, generator=generator), QuantScheme(bits, group_size))
    tensors, expected = V1.encode(weight, torch.float16), packed_by_hand(weight)
    assert set(tensors) == set(expected)
    for part, tensor in tensors.items():
        assert tensor.dtype == expected[part].dtype
        assert torch.equal(tensor, expected[part])
    assert V1.decode(tensors, weight.scheme, "x").equals(weight)


@pytest.mark.parametrize(
    ("bits", "word"), [(4, 0x77777777), (8, 0x7F7F7F7F), (3, 0b11011011011011011011011011011011)]
)
def test_symmetric_zero_points_are_stored_minus_one(bits: int, word: int) -> None:
    weight = rtn(torch.randn(32, 64), QuantScheme(bits, 32))
    assert int(V1.encode(weight, torch.float16)["qzeros"][0, 0]) & 0xFFFFFFFF == word


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


def test_config_matches_the_run(tmp_path: Path) -> None:
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


def test_unquantized_decoder_layers_get_rules(tmp_path: Path) -> None:
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
        for expected, logits in zip(model(samples), loaded(samples), strict=True):
            assert torch.equal(expected, logits)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


FORMS = [
    (family, nested, shards, tied)
    for family in FAMILIES
    for nested in (False, True)
    for shards in (1, 3)
    for tied in (False, True)
]


def is_quick(family: str, nested: bool, shards: int, tied: bool) -> bool:
    """Half of the combinations; every pair of values occurs in one of them."""
    return (family == "qwen2_vl") ^ nested ^ (shards == 3) ^ tied


@pytest.mark.parametrize(
    ("family", "nested", "shards", "tied"),
    [pytest.param(*form, marks=() if is_quick(*form) else pytest.mark.slow) for form in FORMS],
)
def test_names_and_shards_of_the_source_are_kept(
    tmp_path: Path, family: str, nested: bool, shards: int, tied: bool
) -> None:
    raw = small_config(family, tied=tied)
    rounded = recipe(method="rtn")  # names and shards do not depend on the method
    model, _, source, out = export(tmp_path, rounded, raw=raw, nested=nested, shards=shards)
    before, after = all_tensors(source), all_tensors(out)
    table = family_of(model.config)
    layers = {spec.name for spec in table.linears(model.config) if spec.part == "decoder"}
    for name in before:
        if canonical_name(name).removesuffix(".weight") in layers:
            assert name not in after
            assert name.replace(".weight", ".qweight") in after
        elif ".experts." in name:
            assert name not in after
            owner, _, stored = name.rpartition(".")
            for layer in ("gate_proj", "up_proj") if stored == "gate_up_proj" else (stored,):
                assert {f"{owner}.{expert}.{layer}.qweight" for expert in range(4)} <= set(after)
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
        for expected, logits in zip(
            model(samples), load_quantized(out, device="cpu")(samples), strict=True
        ):
            assert torch.equal(expected, logits)


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
        "README.md",
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


def test_folder_is_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, report, source, out = export(tmp_path, recipe())
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ValueError, match="out exists; give another or ask to overwrite"):
        save_quantized(model, report, source, out, format="gptq")

    def fail(*args: object) -> None:
        raise RuntimeError("disk full")

    monkeypatch.setattr(writing, "copy_side_files", fail)
    for target in (out, tmp_path / "new"):
        with pytest.raises(RuntimeError, match="disk full"):
            save_quantized(model, report, source, target, format="gptq", overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]
    monkeypatch.undo()
    (out / "old.txt").write_text("old")
    save_quantized(model, report, source, out, format="gptq", overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_tied_head_is_not_written_twice(tmp_path: Path) -> None:
    model = small_model(small_config(tied=True))
    source = write_small_checkpoint(tmp_path / "source", model)
    tensors = all_tensors(source)
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, source / "model.safetensors")
    report = quantize_(model, recipe(method="rtn"), format="gptq")
    save_quantized(model, report, source, tmp_path / "out", format="gptq")
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
            save_quantized(model, report, source, out, format="gptq", overwrite=True)
    assert (source / "model.safetensors").is_file()


def test_wrong_source_or_model_is_refused(tmp_path: Path) -> None:
    model, report, source, _ = export(tmp_path, recipe())
    other = write_small_checkpoint(tmp_path / "other", small_model(seed=1))
    with pytest.raises(ValueError, match="differs between the model and its source"):
        save_quantized(model, report, other, tmp_path / "new", format="gptq")
    with pytest.raises(ValueError, match="model and report disagree about model"):
        save_quantized(small_model(), report, source, tmp_path / "new", format="gptq")
    assert not (tmp_path / "new").exists()


def test_packing_is_checked_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, report, source, _ = export(tmp_path, recipe())

    encode = GPTQ.encode

    def broken(self: GPTQ, weight: QuantizedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        tensors = encode(self, weight, dtype)
        tensors["qweight"][0, 0] ^= 1
        return tensors

    monkeypatch.setattr(GPTQ, "encode", broken)
    with pytest.raises(RuntimeError, match="packed and unpacked weights differ"):
        save_quantized(model, report, source, tmp_path / "new", format="gptq")
    assert not (tmp_path / "new").exists()


def test_v2_stores_zero_points_unchanged(tmp_path: Path) -> None:
    weight = rtn(torch.rand(64, 32), QuantScheme(4, 32, symmetric=False))
    v2 = FORMATS["gptq_v2"]
    tensors = v2.encode(weight, torch.float16)
    expected = packed_by_hand(replace(weight, zero_points=weight.zero_points + 1))
    assert all(torch.equal(tensors[part], expected[part]) for part in expected)
    assert v2.decode(tensors, weight.scheme, "x").equals(weight)
    words = v2.encode(rtn(torch.randn(32, 64), QuantScheme(4, 32)), torch.float16)["qzeros"]
    assert int(words[0, 0]) & 0xFFFFFFFF == 0x88888888
    rule = recipe(symmetric=False, method="rtn")
    model, report, source, _ = export(tmp_path, rule, format="gptq_v2")
    save_quantized(model, report, source, tmp_path / "v2", format="gptq_v2")
    config = json.loads((tmp_path / "v2" / "quantize_config.json").read_text())
    assert (config["checkpoint_format"], config["sym"]) == ("gptq_v2", False)
    loaded = load_quantized(tmp_path / "v2", device="cpu")
    for name, layer in quantized_layers(model).items():
        assert layer.quantized().equals(quantized_layers(loaded)[name].quantized())


def test_other_schemes_of_single_layers_get_rules(tmp_path: Path) -> None:
    """As GPTQModel defined `+:` rules and vLLM reads them: the first that matches decides."""
    import re

    most = {"method": "rtn", "bits": 4, "group_size": 32, "ignore": ["*.1.mlp.*", "*.0.*o_proj"]}
    few = {"method": "rtn", "bits": 8, "group_size": -1, "targets": ["model.layers.1.mlp.*"]}
    model, _, _, out = export(tmp_path, Recipe.from_dict({"step": [most, few]}))
    config = json.loads((out / "quantize_config.json").read_text())
    assert (config["bits"], config["group_size"]) == (4, 32)

    def override(name: str) -> dict[str, Any] | bool | None:
        for pattern, changes in config["dynamic"].items():
            if re.match(pattern[2:], name):
                return changes if pattern.startswith("+:") else False
        return None

    wide = {"bits": 8, "group_size": -1, "sym": True}
    for prefix in ("model.", "model.language_model.", "language_model.model."):
        assert override(f"{prefix}layers.1.mlp.down_proj") == wide
        assert override(f"{prefix}layers.1.mlp.gate_up_proj") == wide  # as engines fuse it
        assert override(f"{prefix}layers.0.self_attn.o_proj") is False
        assert override(f"{prefix}layers.0.mlp.gate_up_proj") is None
    loaded = quantized_layers(load_quantized(out, device="cpu"))
    for name, layer in quantized_layers(model).items():
        assert layer.quantized().equals(loaded[name].quantized())


def test_an_untied_head_can_be_quantized(tmp_path: Path) -> None:
    decoder = {"method": "rtn", "bits": 4, "group_size": 32}
    head = {"method": "rtn", "bits": 8, "group_size": 32, "targets": ["lm_head"]}
    rule = Recipe.from_dict({"step": [decoder, head]})
    model, _, _, out = export(tmp_path, rule, raw=small_config(tied=False))
    config = json.loads((out / "quantize_config.json").read_text())
    assert config["lm_head"] is True
    assert config["modules_in_block_to_quantize"][-1] == ["lm_head"]
    assert config["dynamic"] == {
        r"-:.*visual\..*": {},
        "+:.*lm_head.*": {"bits": 8, "group_size": 32, "sym": True},
    }
    loaded = quantized_layers(load_quantized(out, device="cpu"))
    assert loaded["lm_head"].quantized().equals(quantized_layers(model)["lm_head"].quantized())
