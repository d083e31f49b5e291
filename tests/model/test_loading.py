"""Every checkpoint form gives the same model; every damaged one is refused with one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import RandomModel, TinyConfig, WriteCheckpoint

from vlpress.model.checkpoint import CheckpointReader, canonical_name
from vlpress.model.loading import (
    build_model,
    choose_device,
    load_block,
    load_model,
    release_block,
    resolve_model,
)


def states_equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("naming", ["hub", "new"])
@pytest.mark.parametrize(("nested", "tied"), [(False, False), (True, True)])
def test_all_forms_load_to_the_same_weights(
    tmp_path: Path,
    tiny_config: TinyConfig,
    random_model: RandomModel,
    write_checkpoint: WriteCheckpoint,
    family: str,
    naming: str,
    shards: int,
    nested: bool,
    tied: bool,
) -> None:
    model = random_model(config=tiny_config(family, nested=nested, tied=tied))
    write_checkpoint(tmp_path, model, naming=naming, shards=shards, tokenizer=False)
    loaded = load_model(tmp_path, device="cpu")
    assert states_equal(loaded, model)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_loaded_weights_outlive_their_file(
    tmp_path: Path, random_model: RandomModel, write_checkpoint: WriteCheckpoint
) -> None:
    model = random_model()
    path = write_checkpoint(tmp_path, model) / "model.safetensors"
    loaded = load_model(tmp_path, device="cpu")
    path.write_bytes(b"")
    assert states_equal(loaded, model)


def test_tied_head_may_be_stored_as_well(
    tmp_path: Path,
    tiny_config: TinyConfig,
    random_model: RandomModel,
    write_checkpoint: WriteCheckpoint,
) -> None:
    model = random_model(config=tiny_config(tied=True))
    assert model.lm_head is None
    head = {"lm_head.weight": model.model.embed_tokens.weight.clone()}
    write_checkpoint(tmp_path, model, extra=head)
    assert states_equal(load_model(tmp_path, device="cpu"), model)
    head["lm_head.weight"][3, 5] += 1
    write_checkpoint(tmp_path, model, extra=head)
    with pytest.raises(ValueError, match=r"tie_word_embeddings.*lm_head\.weight"):
        load_model(tmp_path, device="cpu")


def test_dtype_follows_checkpoint_or_argument(
    tmp_path: Path,
    tiny_config: TinyConfig,
    random_model: RandomModel,
    write_checkpoint: WriteCheckpoint,
) -> None:
    config = tiny_config(dtype="bfloat16")
    write_checkpoint(tmp_path, random_model(config=config, dtype=torch.bfloat16))
    assert load_model(tmp_path).dtype is torch.bfloat16
    assert load_model(tmp_path, dtype="fp32").dtype is torch.float32
    assert load_model(tmp_path, dtype=torch.float16).dtype is torch.float16
    with pytest.raises(ValueError, match=r"dtype 'int4'.*auto, bf16"):
        load_model(tmp_path, dtype="int4")


def test_reader_is_lazy_and_knows_both_names(
    tmp_path: Path, random_model: RandomModel, write_checkpoint: WriteCheckpoint
) -> None:
    model = random_model()
    write_checkpoint(tmp_path, model, naming="new", shards=2)
    reader = CheckpointReader(tmp_path)
    name = "model.layers.1.mlp.up_proj.weight"
    assert name in reader and sorted(reader.names()) == sorted(model.state_dict())
    assert reader.source_name(name) == "model.language_model.layers.1.mlp.up_proj.weight"
    assert reader.canonical()[reader.source_name(name)] == name
    assert reader.shape(name) == (256, 128) and reader.dtype(name) is torch.float32
    assert reader.file(name).startswith("model-0000")
    assert torch.equal(reader.tensor(name), model.state_dict()[name])
    with pytest.raises(ValueError, match=r"'model\.layers\.9\.x'"):
        reader.tensor("model.layers.9.x")


@pytest.mark.parametrize(
    ("source", "canonical"),
    [
        ("visual.blocks.0.norm1.weight", "visual.blocks.0.norm1.weight"),
        ("model.visual.blocks.0.norm1.weight", "visual.blocks.0.norm1.weight"),
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_canonical_names(source: str, canonical: str) -> None:
    assert canonical_name(source) == canonical


def test_blocks_load_and_release_one_at_a_time(
    tmp_path: Path, random_model: RandomModel, write_checkpoint: WriteCheckpoint
) -> None:
    source = random_model()
    write_checkpoint(tmp_path, source)
    model = build_model(source.config, dtype=torch.float32)
    reader = CheckpointReader(tmp_path)
    layer = model.model.layers[1]
    load_block(reader, model, "model.layers.1")
    assert states_equal(layer, source.model.layers[1])
    others = [p for n, p in model.named_parameters() if not n.startswith("model.layers.1.")]
    assert all(parameter.is_meta for parameter in others)
    release_block(layer)
    assert all(parameter.is_meta for parameter in model.parameters())
    load_block(reader, model, "model.norm", device="cpu")
    assert torch.equal(model.model.norm.weight, source.model.norm.weight)


def test_missing_shard(tmp_path: Path, write_checkpoint: WriteCheckpoint) -> None:
    write_checkpoint(tmp_path, shards=3)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"'model-00002-of-00003\.safetensors'"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 200, 5000])
def test_truncated_file(tmp_path: Path, write_checkpoint: WriteCheckpoint, keep: int) -> None:
    path = write_checkpoint(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"\b{keep} bytes"):
        load_model(tmp_path)


def edit_index(folder: Path, **changes: str) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= changes
    path.write_text(json.dumps(index))


def test_index_that_names_a_missing_tensor(
    tmp_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    write_checkpoint(tmp_path, shards=2)
    edit_index(tmp_path, **{"model.ghost.weight": "model-00001-of-00002.safetensors"})
    with pytest.raises(ValueError, match=r"'model\.ghost\.weight'"):
        load_model(tmp_path)


@pytest.mark.parametrize("file", ["../secret.safetensors", "/etc/passwd", "C:\\x", "a\\..\\..\\b"])
def test_index_that_leaves_the_folder(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, file: str
) -> None:
    write_checkpoint(tmp_path, shards=2)
    edit_index(tmp_path, **{"model.norm.weight": file})
    with pytest.raises(ValueError, match="plain file names"):
        load_model(tmp_path)


def test_index_without_a_map(tmp_path: Path, write_checkpoint: WriteCheckpoint) -> None:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match="weight_map"):
        load_model(tmp_path)


def rewrite(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def test_missing_left_over_and_misshapen_tensors(
    tmp_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    write_checkpoint(tmp_path / "a")
    rewrite(tmp_path / "a", lambda tensors: tensors.pop("visual.merger.mlp.0.bias"))
    with pytest.raises(ValueError, match=r"visual\.merger\.mlp\.0\.bias is missing"):
        load_model(tmp_path / "a")
    write_checkpoint(tmp_path / "b", extra={"model.layers.7.x": torch.ones(1)})
    with pytest.raises(ValueError, match=r"model\.layers\.7\.x is unknown"):
        load_model(tmp_path / "b")
    write_checkpoint(tmp_path / "c")
    rewrite(tmp_path / "c", lambda tensors: tensors.update({"model.norm.weight": torch.ones(64)}))
    with pytest.raises(ValueError, match=r"model\.norm\.weight .*\[64\].*\[128"):
        load_model(tmp_path / "c")
    write_checkpoint(tmp_path / "d")
    integers = torch.ones(128, dtype=torch.int32)
    rewrite(tmp_path / "d", lambda tensors: tensors.update({"model.norm.weight": integers}))
    with pytest.raises(ValueError, match=r"model\.norm\.weight .*torch\.int32"):
        load_model(tmp_path / "d")


def test_untied_head_must_be_there(
    tmp_path: Path, tiny_config: TinyConfig, write_checkpoint: WriteCheckpoint
) -> None:
    write_checkpoint(tmp_path)
    rewrite(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"lm_head\.weight is missing"):
        load_model(tmp_path)


def test_one_tensor_under_two_names(tmp_path: Path, write_checkpoint: WriteCheckpoint) -> None:
    extra = {"model.language_model.norm.weight": torch.ones(128)}
    write_checkpoint(tmp_path, extra=extra)
    with pytest.raises(ValueError, match="same tensor"):
        load_model(tmp_path)


def test_folders_without_usable_weights(tmp_path: Path, write_checkpoint: WriteCheckpoint) -> None:
    path = write_checkpoint(tmp_path) / "model.safetensors"
    path.rename(tmp_path / "one.safetensors")
    assert load_model(tmp_path, device="cpu").dtype is torch.float32
    (tmp_path / "two.safetensors").write_bytes((tmp_path / "one.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"\b2 safetensors files .*index\.json"):
        load_model(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors .*index\.json"):
        load_model(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ValueError, match=r"pickled .*pytorch_model\.bin"):
        load_model(tmp_path)


def test_unknown_family_and_quantized_checkpoint(
    tmp_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    path = write_checkpoint(tmp_path) / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(ValueError, match=r"\(gptq\).*load_quantized"):
        load_model(tmp_path)
    path.write_text(json.dumps({**raw, "model_type": "qwen4_vl"}))
    with pytest.raises(ValueError, match=r"model_type.*qwen4_vl.*qwen3_vl_moe"):
        load_model(tmp_path)


def test_names_that_are_no_model(tmp_path: Path) -> None:
    assert resolve_model(tmp_path) == tmp_path
    with pytest.raises(FileNotFoundError, match=r"no such folder.*hub id"):
        resolve_model(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match=r"is a file.*checkpoint folder"):
        resolve_model(file)


def test_hub_errors_become_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(repo: str, **_: object) -> str:
        raise OSError(f"cannot reach {repo}\nlong explanation")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(ValueError, match=r"hub \(cannot reach some/model\)"):
        resolve_model("some/model")


def test_devices() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match=r"device 'gpu'.*auto, cpu, cuda"):
        choose_device("gpu")
    with pytest.raises(ValueError, match=r"\d+ CUDA devices"):
        choose_device("cuda:99")


def test_meta_model_has_the_config_dtype(tiny_config: TinyConfig) -> None:
    model = build_model(tiny_config(dtype="float16"))
    assert model.device.type == "meta" and model.dtype is torch.float16
