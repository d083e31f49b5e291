"""Files and description of an export, and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from blockwise_jobs import finish, job, source_of
from format_files import checkpoint, recipe
from onnx_exports import (
    ONNX_FAMILIES,
    export_of,
    float_export,
    graph_of,
    initializers,
    unpack_bytes,
)
from onnx_host import Array
from safetensors.torch import load_file
from tiny_models import (
    FAMILIES,
    make_random_model,
    prompts,
    small_config,
    small_model,
    write_checkpoint_folder,
    write_small_checkpoint,
)

from vlpress.model.config import ModelConfig
from vlpress.model.rope import text_rotary
from vlpress.quant.api import export
from vlpress.quant.checkpoint.formats.format import integers_of
from vlpress.quant.checkpoint.safetensors_folder.reading import QuantizedCheckpoint
from vlpress.quant.deployment.onnx.external_data import ALIGNMENT
from vlpress.quant.recipe.recipe import Recipe


def described(folder: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads((folder / "export.json").read_text())
    return about


def test_integers_scales_and_zero_points_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    tower = {"targets": ["visual.*"], "bits": 8, "group_size": -1}
    steps = {"bits": 3, "symmetric": False}, tower
    _, _, source = checkpoint(tmp_path, recipe(*steps), "compressed-tensors")
    out = export_of(source, tmp_path / "onnx")
    stored = initializers(out, "text") | initializers(out, "vision")
    quantized, layers = QuantizedCheckpoint(source), described(out)["layers"]
    assert len(quantized.schemes) > 20
    for name in quantized.schemes:
        weight, about = integers_of(quantized.weight(name)), layers[name]
        codes = stored[f"{name}.codes"].reshape(weight.out_features, -1)
        integers = unpack_bytes(codes, about["stored_bits"])[:, : weight.in_features]
        assert np.array_equal(integers, weight.integers)
        scales = stored[f"{name}.scales"]
        assert np.array_equal(scales, repeated(weight.scales, scales.shape[1]))
        if weight.scheme.symmetric and about["bits"] == about["stored_bits"]:
            assert f"{name}.zero_points" not in stored
            continue
        packed = unpack_bytes(stored[f"{name}.zero_points"], about["stored_bits"])
        blocks = scales.shape[1]
        assert np.array_equal(packed[:, :blocks], repeated(weight.zero_points, blocks))


def repeated(values: torch.Tensor, blocks: int) -> Array:
    """Repeat the values of groups for the blocks within them."""
    return np.repeat(values.numpy(), blocks // values.shape[1], axis=1)


def test_activations_are_never_rounded_to_int8(tmp_path: Path) -> None:
    _, _, source = checkpoint(tmp_path, recipe(), "gptq")
    out = export_of(source, tmp_path / "onnx")
    assert described(out)["accuracy_level"] == 1
    levels = {
        onnx.helper.get_node_attr_value(node, "accuracy_level")
        for node in graph_of(out, "text").graph.node
        if node.op_type == "MatMulNBits"
    }
    assert levels == {1}


@pytest.mark.parametrize("family", ONNX_FAMILIES)
def test_graphs_pass_the_checker_and_use_listed_operators(tmp_path: Path, family: str) -> None:
    _, out = float_export(tmp_path, family, patches=16, prefill=8)
    for name in ("vision", "embedding", "text", "prefill"):
        onnx.checker.check_model(out / f"{name}.onnx", full_check=True)
        model = graph_of(out, name)
        assert [(each.domain, each.version) for each in model.opset_import] == [("", 23)]
        assert model.ir_version == 11


def test_weights_start_at_pages_and_are_stored_once(tmp_path: Path) -> None:
    _, out = float_export(tmp_path, prefill=8)
    for name in ("vision", "text", "prefill"):
        for tensor in graph_of(out, name).graph.initializer:
            entries = {each.key: each.value for each in tensor.external_data}
            if not entries:
                assert len(tensor.raw_data) < 100
                continue
            assert int(entries["offset"]) % ALIGNMENT == 0
            assert entries["location"] == f"{name.replace('prefill', 'text')}.onnx.data"
    assert not (out / "prefill.onnx.data").exists()


def test_the_description_lists_every_file_with_its_checksum(tmp_path: Path) -> None:
    _, out = float_export(tmp_path)
    files = described(out)["files"]
    present = {path.name for path in out.iterdir()} - {"export.json", "work.json"}
    assert files.keys() == present
    assert {"vision.onnx", "text.onnx.data", "embedding.onnx", "tokenizer_config.json"} <= present
    for name, entry in files.items():
        data = (out / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_the_described_angles_are_those_of_the_model(tmp_path: Path, family: str) -> None:
    model, out = float_export(tmp_path, family)
    text, positions = described(out)["text"], prompts(model.config)[2].position_ids
    angles = positions.numpy()[text["axes"]].T * np.array(text["frequencies"], np.float32)
    layout = "sectioned" if family == "qwen2_5_vl" else "interleaved"
    cos, _ = text_rotary(positions[:, None], model.config.text, layout)  # type: ignore[arg-type]
    assert np.abs(np.cos(angles) - cos[0].numpy()).max() < 1e-5


def test_the_chat_template_is_rendered(tmp_path: Path) -> None:
    source = write_checkpoint_folder(tmp_path / "source", make_random_model("qwen2_vl"))
    about = described(export_of(source, tmp_path / "onnx"))
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    image = "<|vision_start|><|image_pad|><|vision_end|>{question}"
    assert about["chat"] == {
        "file": "tokenizer_config.json",
        "with_image": turn.format(image),
        "text_only": turn.format("{question}"),
    }
    assert about["tokens"]["end"] == [256, 258]
    assert about["image"]["max_pixels"] == (8 * 14) ** 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_raw_embedding_is_numpys_fp16(tmp_path: Path, dtype: torch.dtype) -> None:
    _, out = float_export(tmp_path, dtype=dtype, embedding="raw")
    tensors = load_file(tmp_path / "source" / "model.safetensors")
    table = tensors["model.embed_tokens.weight"].float().numpy()
    table.astype(np.float16).tofile(tmp_path / "expected.bin")
    assert (out / "embed_tokens.bin").read_bytes() == (tmp_path / "expected.bin").read_bytes()
    changed = int((table.astype(np.float16).astype(np.float32) != table).sum())
    about = described(out)
    assert about["embedding"] == {
        "file": "embed_tokens.bin",
        "dtype": "float16",
        "shape": [96, 64],
        "changed": changed,
    }
    assert (changed > 1000) == (dtype == torch.float32)
    assert f"{changed} entries" in "".join(about["notes"])
    assert not (out / "embedding.onnx").exists() and "embedding" not in about["graphs"]


def test_a_raw_embedding_beyond_fp16_is_refused(tmp_path: Path) -> None:
    model = small_model()
    model.model.embed_tokens.weight[3, 5] = 70000.0
    source = write_small_checkpoint(tmp_path / "source", model)
    with pytest.raises(ValueError, match=r"70000.*65504"):
        export_of(source, tmp_path / "onnx", embedding="raw")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ONNX_FAMILIES])
def test_other_families_are_refused_by_name(tmp_path: Path, family: str) -> None:
    source = write_small_checkpoint(tmp_path / "source", small_model(small_config(family)))
    with pytest.raises(ValueError, match=f"{family}; allowed: qwen2_vl, qwen2_5_vl, qwen3_vl"):
        export_of(source, tmp_path / "onnx")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "activations": ({"bits": 8, "group_size": -1, "activations": "dynamic"}, "int8 dynamic"),
    "a table": ({"grid": "nvfp4"}, "nvfp4"),
    "groups": ({"bits": 4, "group_size": 8}, "groups of 8"),
}


@pytest.mark.parametrize(("step", "named"), REFUSED.values(), ids=REFUSED)
def test_schemes_without_an_operator_are_refused(
    tmp_path: Path, step: dict[str, Any], named: str
) -> None:
    rule = Recipe.from_dict({"name": "test", "step": [{"method": "rtn", **step}]})
    _, _, source = checkpoint(tmp_path, rule, "compressed-tensors")
    with pytest.raises(ValueError, match=f"model.layers.0.self_attn.q_proj .*{named}"):
        export_of(source, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_properties_that_the_graphs_lack_are_noted(tmp_path: Path) -> None:
    samples = prompts(ModelConfig.from_dict(small_config()))
    step = {"method": "rtn", "bits": 4, "group_size": 32}
    streaming = job(source_of(tmp_path), [step], samples, kv_cache={"bits": 8, "type": "fp8"})
    finish(streaming, tmp_path / "work", tmp_path / "quantized")
    record = tmp_path / "quantized" / "vlpress.json"
    rule = {"method": "duplicates", "threshold": 0.98}
    record.write_text(json.dumps(json.loads(record.read_text()) | {"visual_tokens": rule}))
    about = described(export_of(tmp_path / "quantized", tmp_path / "onnx"))
    assert ["FP8 KV cache" in note for note in about["notes"]] == [True, False]
    assert ["visual tokens" in note for note in about["notes"]] == [False, True]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_small_checkpoint(tmp_path / "source", small_model())
    monkeypatch.setattr("vlpress.quant.deployment.onnx.onnx_format.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'vlpress\[onnx\]'"):
        export_of(source, tmp_path / "onnx")


def test_a_checkpoint_without_a_tokenizer_has_no_chat(tmp_path: Path) -> None:
    _, out = float_export(tmp_path)
    about = described(out)
    assert about["chat"] is None and about["tokens"]["end"] == []
    assert about["image"]["min_pixels"] == 3136


def test_values_of_options_are_checked(tmp_path: Path) -> None:
    source = write_small_checkpoint(tmp_path / "source", small_model())
    with pytest.raises(ValueError, match=r"--patches is 100.*multiple of 16"):
        export_of(source, tmp_path / "onnx", patches=100)
    with pytest.raises(ValueError, match=r"embedding.*graph, raw"):
        export(source, out=tmp_path / "onnx", format="onnx", embedding="fp8")  # type: ignore[arg-type]


def test_options_of_other_formats_are_refused(tmp_path: Path) -> None:
    _, _, source = checkpoint(tmp_path, recipe(), "gptq")
    with pytest.raises(ValueError, match="--patches"):
        export(source, out=tmp_path / "awq", format="awq", patches=16)
