"""Conversion from every format to every other one, and refusals."""

import json
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from format_files import (
    checkpoint,
    edit_config,
    quantization_config,
    recipe,
    same_logits,
    same_weights,
    weights_of,
)
from gptq_files import all_tensors
from safetensors.torch import save_file
from tiny_models import small_config

from vlpress.quant.checkpoint.export import export
from vlpress.quant.checkpoint.formats.table import FORMATS
from vlpress.quant.driver.pipeline import load_quantized
from vlpress.quant.recipe.scheme import QuantScheme

pytestmark = pytest.mark.usefixtures("reference_kernel")

LAYER = "model.layers.0.mlp.down_proj"
W4 = recipe({"ignore": ["model.layers.1.mlp.down_proj"]})


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


HOLDING = [name for name, form in FORMATS.items() if QuantScheme.kind in form.kinds]
# Every format of integers once as the start and once as the goal.
RING = list(zip(HOLDING, [*HOLDING[1:], HOLDING[0]], strict=True))


@pytest.mark.parametrize(
    ("start", "goal"),
    [
        pytest.param(*pair, marks=() if pair in RING else pytest.mark.slow)
        for pair in permutations(HOLDING, 2)
    ],
)
def test_there_and_back_is_the_same_to_the_byte(tmp_path: Path, start: str, goal: str) -> None:
    shards = 1 + len(start) % 3
    model, _, first = checkpoint(tmp_path, W4, start, shards=shards, nested=shards == 2)
    there, back = tmp_path / "there", tmp_path / "back"
    export(first, there, goal)
    assert quantization_config(there)["quant_method"] == goal.removesuffix("_v2")
    assert same_weights(first, there)
    assert same_logits(model, load_quantized(there, device="cpu"))
    export(there, back, start)
    assert content(back) == content(first)


def test_an_export_is_what_would_have_been_written(tmp_path: Path) -> None:
    """But for biases, which stay as they were stored."""
    _, _, gptq = checkpoint(tmp_path, W4, "gptq")
    _, _, direct = checkpoint(tmp_path, W4, "compressed-tensors")
    export(gptq, tmp_path / "exported", "compressed-tensors")
    exported = tmp_path / "exported"
    assert (exported / "config.json").read_bytes() == (direct / "config.json").read_bytes()
    one, two, original = all_tensors(exported), all_tensors(direct), all_tensors(gptq)
    assert set(one) == set(two)
    for name, tensor in one.items():
        if name.startswith("model.layers.") and name.endswith("_proj.bias"):
            assert torch.equal(tensor, original[name]) and tensor.dtype == torch.float16
        else:
            assert tensor.dtype == two[name].dtype and torch.equal(tensor, two[name])


def test_everything_else_is_copied_byte_for_byte(tmp_path: Path) -> None:
    _, _, gptq = checkpoint(tmp_path, W4, "gptq")
    out = tmp_path / "out"
    export(gptq, out, "awq")
    before, after = content(gptq), content(out)
    assert set(before) - set(after) == {"quantize_config.json"}
    for name in ("tokenizer_config.json", "preprocessor_config.json", "chat_template.jinja"):
        assert after[name] == before[name]
    one, two = json.loads(before["config.json"]), json.loads(after["config.json"])
    assert list(one) == list(two)
    one.pop("quantization_config"), two.pop("quantization_config")
    assert one == two
    record, other = json.loads(before["vlpress.json"]), json.loads(after["vlpress.json"])
    size = sum(tensor.nbytes for tensor in all_tensors(out).values())
    assert other["size"]["candidate_bytes"] == size < record["size"]["candidate_bytes"]
    assert [layer.pop("bytes") for layer in other["layers"]] != [
        layer.pop("bytes") for layer in record["layers"]
    ]
    assert {**other, "size": 0} == {**record, "size": 0}


def test_several_schemes_and_the_tower(tmp_path: Path) -> None:
    steps: list[dict[str, Any]] = [
        {"ignore": ["*.down_proj"]},
        {"bits": 8, "group_size": -1, "targets": ["model.layers.*.down_proj"]},
    ]
    _, _, gptq = checkpoint(tmp_path, recipe(*steps), "gptq")
    export(gptq, tmp_path / "ct", "compressed-tensors")
    assert same_weights(gptq, tmp_path / "ct")
    export(tmp_path / "ct", tmp_path / "back", "gptq")
    assert content(tmp_path / "back") == content(gptq)
    with pytest.raises(ValueError, match=r"gptq cannot be exported: format awq: .* 8 bits; it hol"):
        export(gptq, tmp_path / "awq", "awq")
    tower = recipe({"bits": 8, "targets": ["visual.*.attn.*"]})
    _, _, folder = checkpoint(tmp_path / "tower", tower, "compressed-tensors")
    for format in ("gptq", "gptq_v2"):
        with pytest.raises(ValueError, match="and 3 more layers are in the vision tower, which"):
            export(folder, tmp_path / "x", format)
    with pytest.raises(ValueError, match="are outside the decoder, where engines that read AWQ"):
        export(folder, tmp_path / "x", "awq")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("activations", ["dynamic", "static"])
def test_rounded_activations_stay_in_compressed_tensors(tmp_path: Path, activations: str) -> None:
    from tiny_models import prompts, small_model, write_small_checkpoint

    from vlpress.quant.driver.pipeline import quantize_, save_quantized

    model = small_model(small_config() | {"torch_dtype": "bfloat16"}, dtype=torch.bfloat16)
    source = write_small_checkpoint(tmp_path / "source", model)
    rule = recipe({"method": "gptq", "bits": 8, "group_size": -1, "activations": activations})
    report = quantize_(model, rule, prompts(model.config))
    out = tmp_path / "w8a8"
    save_quantized(model, report, source, out)
    assert quantization_config(out)["format"] == "int-quantized"
    assert (f"{LAYER}.input_scale" in all_tensors(out)) == (activations == "static")
    assert same_logits(model, load_quantized(out, device="cpu"))
    export(out, tmp_path / "again", "compressed-tensors")
    assert content(tmp_path / "again") == content(out)
    for format in ("gptq", "gptq_v2", "awq"):
        with pytest.raises(
            ValueError, match="have int8 activations, which only compressed-tensors"
        ):
            export(out, tmp_path / "x", format)


def test_asymmetric_weights(tmp_path: Path) -> None:
    _, _, awq = checkpoint(tmp_path, recipe({"symmetric": False}), "awq")
    for format in ("gptq_v2", "compressed-tensors"):
        export(awq, tmp_path / format, format)
        assert same_weights(awq, tmp_path / format)
        export(tmp_path / format, tmp_path / f"{format}-awq", "awq")
        assert content(tmp_path / f"{format}-awq") == content(awq)
    with pytest.raises(ValueError, match=r"asymmetric .* cannot represent 0; use gptq_v2"):
        export(awq, tmp_path / "x", "gptq")


class TestForeignCheckpoints:
    """Without a record, and with what other writers add."""

    def foreign(self, tmp_path: Path, format: str = "gptq") -> Path:
        _, _, out = checkpoint(tmp_path, recipe(), format)
        (out / "vlpress.json").unlink()
        return out

    def test_without_a_record_nothing_is_claimed(self, tmp_path: Path) -> None:
        out = self.foreign(tmp_path, "awq")
        export(out, tmp_path / "gptq", "gptq")
        config = quantization_config(tmp_path / "gptq")
        assert "damp_percent" not in config and config["true_sequential"] is False
        assert not (tmp_path / "gptq" / "vlpress.json").exists()
        assert same_weights(out, tmp_path / "gptq")

    def test_order_of_groups_stays_in_gptq(self, tmp_path: Path) -> None:
        out = self.foreign(tmp_path)
        tensors = all_tensors(out)
        order = torch.randperm(128, generator=torch.Generator().manual_seed(0)) // 32
        save_file(tensors | {f"{LAYER}.g_idx": order.int()}, out / "model.safetensors")
        edit_config(out, desc_act=True, static_groups=False)
        export(out, tmp_path / "v2", "gptq_v2")
        config = quantization_config(tmp_path / "v2")
        assert (config["desc_act"], config["static_groups"]) == (True, False)
        assert same_weights(out, tmp_path / "v2")
        for format, reason in (
            ("compressed-tensors", r"down_proj .*groups \(g_idx\), .* use gptq"),
            ("awq", r"down_proj .*groups \(g_idx\), .* use gptq"),
        ):
            with pytest.raises(ValueError, match=reason):
                export(out, tmp_path / "x", format)

    def test_biases_of_zeros_and_a_copied_head_are_left_out(self, tmp_path: Path) -> None:
        out = self.foreign(tmp_path)
        tensors = all_tensors(out)
        extra = {
            "model.layers.0.self_attn.o_proj.bias": torch.zeros(64, dtype=torch.float16),
            "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
        }
        save_file(tensors | extra, out / "model.safetensors")
        export(out, tmp_path / "v2", "gptq_v2")
        assert set(all_tensors(tmp_path / "v2")) == set(tensors)
        extra["lm_head.weight"] += 1
        save_file(tensors | extra, out / "model.safetensors")
        with pytest.raises(ValueError, match=r"lm_head\.weight differs from the embedding"):
            export(out, tmp_path / "x", "awq")

    def test_scales_that_bf16_does_not_hold(self, tmp_path: Path) -> None:
        """Real GPTQ files have fp16 scales of 11 bits: those keep their type."""
        out = self.foreign(tmp_path)
        tensors = all_tensors(out)
        tensors[f"{LAYER}.scales"][0, 0] = 1 + 2.0**-10
        save_file(tensors, out / "model.safetensors")
        export(out, tmp_path / "ct", "compressed-tensors")
        tensors = all_tensors(tmp_path / "ct")
        assert tensors[f"{LAYER}.weight_scale"].dtype == torch.float16
        assert tensors["model.layers.1.mlp.down_proj.weight_scale"].dtype == torch.bfloat16
        assert same_weights(out, tmp_path / "ct")

    def test_scales_that_fp16_does_not_hold(self, tmp_path: Path) -> None:
        out = self.foreign(tmp_path, "compressed-tensors")
        tensors = all_tensors(out)
        tensors[f"{LAYER}.weight_scale"][0, 0] = 2.0**-30
        save_file(tensors, out / "model.safetensors")
        message = r"format awq: model\.layers\.0\.mlp\.down_proj: a scale is not an fp16 number"
        with pytest.raises(ValueError, match=message):
            export(out, tmp_path / "x", "awq")
        assert not (tmp_path / "x").exists()

    def test_layers_spread_over_shards(self, tmp_path: Path) -> None:
        """Some writers split a layer; all of it goes where its integers were."""
        _, _, out = checkpoint(tmp_path, recipe(), "gptq", shards=2)
        before = weights_of(out)
        shutil.copytree(out, tmp_path / "split")
        index = json.loads((out / "model.safetensors.index.json").read_text())
        files = sorted(set(index["weight_map"].values()))
        file_of_layer = index["weight_map"][f"{LAYER}.qweight"]
        other = next(file for file in files if file != file_of_layer)
        index["weight_map"][f"{LAYER}.scales"] = other
        tensors = all_tensors(out)
        for file in files:
            shard = {n: tensors[n] for n, owner in index["weight_map"].items() if owner == file}
            save_file(shard, tmp_path / "split" / file)
        (tmp_path / "split" / "model.safetensors.index.json").write_text(json.dumps(index))
        export(tmp_path / "split", tmp_path / "joined", "gptq")
        joined = json.loads((tmp_path / "joined" / "model.safetensors.index.json").read_text())
        assert joined["weight_map"][f"{LAYER}.scales"] == file_of_layer
        after = weights_of(tmp_path / "joined")
        assert all(before[name].equals(after[name]) for name in before)


def test_a_record_of_another_model_is_refused(tmp_path: Path) -> None:
    _, _, out = checkpoint(tmp_path, recipe(), "gptq")
    record = json.loads((out / "vlpress.json").read_text())
    record["layers"][0]["name"] = "other"
    (out / "vlpress.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"vlpress\.json and .* disagree about model\.lay"):
        export(out, tmp_path / "x", "awq")


def test_what_is_no_quantized_checkpoint(tmp_path: Path) -> None:
    checkpoint(tmp_path, recipe(), "gptq")
    with pytest.raises(ValueError, match="is not quantized"):
        export(tmp_path / "source", tmp_path / "x", "awq")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        export(tmp_path / "nowhere", tmp_path / "x", "awq")
    with pytest.raises(ValueError, match="format 'hqq' is unknown"):
        export(tmp_path / "gptq", tmp_path / "x", "hqq")
    with pytest.raises(ValueError, match="is or holds the source"):
        export(tmp_path / "gptq", tmp_path / "gptq", "awq", overwrite=True)
