"""Folders with more than one set of weights: selection and warnings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import RandomModel, WriteCheckpoint, make_random_model

from vlpress.eval.fingerprint import count_weight_bytes, identify_checkpoint
from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.loading import load_model, resolve_model
from vlpress.model.qwen_vl import QwenVL
from vlpress.model.weight_files import INDEX_FILE, SINGLE_FILE, digest_folder, find_weights
from vlpress.quant.checkpoint.safetensors_folder.reading import QuantizedCheckpoint

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
ADAPTER = "adapter_model.safetensors"
LORA = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(4, 128)}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 14145776\n"


@pytest.fixture(scope="module")
def model() -> QwenVL:
    return make_random_model()


@pytest.fixture(scope="module")
def older() -> QwenVL:
    """Other weights of the same sizes."""
    return make_random_model(seed=1)


def is_loaded(folder: Path, model: QwenVL) -> bool:
    loaded, expected = load_model(folder, device="cpu").state_dict(), model.state_dict()
    return all(torch.equal(loaded[name], expected[name]) for name in expected)


def add_adapter(folder: Path, base: str | None = None) -> None:
    folder.mkdir(exist_ok=True)
    save_file(LORA, folder / ADAPTER)
    settings = {"peft_type": "LORA"} | ({"base_model_name_or_path": base} if base else {})
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def copy(folder: Path, source: str, target: str) -> None:
    (folder / target).write_bytes((folder / source).read_bytes())


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_the_single_file_is_read_before_the_index(
    tmp_path: Path,
    write_checkpoint: WriteCheckpoint,
    model: QwenVL,
    older: QwenVL,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_checkpoint(tmp_path, older, shards=2)
    write_checkpoint(tmp_path, model)
    assert is_loaded(tmp_path, model)
    (record,) = caplog.records
    assert record.name.startswith("vlpress.") and record.levelname == "WARNING"
    assert f" {SINGLE_FILE}, not " in record.message and SHARDS[0] in record.message
    assert str(tmp_path) in record.message
    weights = find_weights(tmp_path)
    assert weights.files == (SINGLE_FILE,) and {*weights.unread} == {*SHARDS, INDEX_FILE}


def test_an_index_of_the_single_file_and_another_is_read(
    tmp_path: Path,
    write_checkpoint: WriteCheckpoint,
    model: QwenVL,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """llm-compressor saves the draft module of Qwen3.5 in a second file."""
    write_checkpoint(tmp_path, model)
    more, drafts = {"mtp.norm.weight": torch.arange(4.0)}, "model_mtp.safetensors"
    save_file(more, tmp_path / drafts)
    files = {SINGLE_FILE: load_file(tmp_path / SINGLE_FILE), drafts: more}
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    (tmp_path / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    assert set(find_weights(tmp_path).files) == {SINGLE_FILE, drafts}
    reader = CheckpointReader(tmp_path)
    assert len(reader.names()) == len(weight_map) and not caplog.records
    assert torch.equal(reader.tensor("mtp.norm.weight"), more["mtp.norm.weight"])


def test_a_warning_is_given_once(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path)
    copy(tmp_path, SINGLE_FILE, "consolidated.safetensors")
    for _ in range(3):
        CheckpointReader(tmp_path)
    assert len(caplog.records) == 1


def test_an_index_whose_shards_are_missing_with_a_single_file(
    tmp_path: Path,
    write_checkpoint: WriteCheckpoint,
    model: QwenVL,
    caplog: pytest.LogCaptureFixture,
) -> None:
    write_checkpoint(tmp_path, shards=2)
    write_checkpoint(tmp_path, model)
    for shard in SHARDS:
        (tmp_path / shard).unlink()
    assert is_loaded(tmp_path, model)
    assert find_weights(tmp_path).unread == (INDEX_FILE,)
    assert INDEX_FILE in caplog.text


@pytest.mark.parametrize("leftover", [b"", None], ids=["no bytes", "no tensors"])
def test_a_single_file_without_tensors_and_shards(
    tmp_path: Path,
    write_checkpoint: WriteCheckpoint,
    model: QwenVL,
    caplog: pytest.LogCaptureFixture,
    leftover: bytes | None,
) -> None:
    write_checkpoint(tmp_path, model, shards=2)
    if leftover is None:
        save_file({}, tmp_path / SINGLE_FILE)
    else:
        (tmp_path / SINGLE_FILE).write_bytes(leftover)
    assert is_loaded(tmp_path, model)
    assert {*find_weights(tmp_path).files} == {*SHARDS}
    assert SINGLE_FILE in caplog.text


def test_a_damaged_single_file_with_shards_is_refused(
    tmp_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / SINGLE_FILE).write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match=r"model\.safetensors.*40 bytes") as caught:
        load_model(tmp_path)
    one_line(caught.value)


@pytest.mark.parametrize(
    "extra",
    [
        "model-00003-of-00003.safetensors",
        "consolidated.safetensors",
        "Model.SAFETENSORS",
        "pytorch_model.bin",
        "consolidated.00.pth",
    ],
)
@pytest.mark.parametrize("shards", [1, 2])
def test_other_weights_are_named_and_not_read(
    tmp_path: Path,
    write_checkpoint: WriteCheckpoint,
    model: QwenVL,
    older: QwenVL,
    caplog: pytest.LogCaptureFixture,
    extra: str,
    shards: int,
) -> None:
    write_checkpoint(tmp_path, older)
    (tmp_path / SINGLE_FILE).rename(tmp_path / extra)
    write_checkpoint(tmp_path, model, shards=shards)
    assert is_loaded(tmp_path, model)
    assert find_weights(tmp_path).unread == (extra,)
    assert extra in caplog.text and (SINGLE_FILE if shards == 1 else INDEX_FILE) in caplog.text


@pytest.mark.parametrize(
    "name", ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "scaler.pt"]
)
def test_state_of_a_trainer_is_no_second_set(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    write_checkpoint(tmp_path / "whole")
    (tmp_path / "whole" / name).write_bytes(b"x")
    assert CheckpointReader(tmp_path / "whole").names() and not caplog.records
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / name).write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=SINGLE_FILE):
        CheckpointReader(tmp_path / "alone")


def rename_in_index(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / INDEX_FILE
    index = json.loads(path.read_text())
    index["weight_map"] = {name: change(file) for name, file in index["weight_map"].items()}
    path.write_text(json.dumps(index))


def test_an_index_of_another_save_is_refused(
    tmp_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    write_checkpoint(tmp_path, shards=2)
    rename_in_index(tmp_path, lambda file: file.replace("of-00002", "of-00003"))
    with pytest.raises(FileNotFoundError, match="model-00001-of-00003") as caught:
        load_model(tmp_path)
    assert SHARDS[0] in one_line(caught.value)


@pytest.mark.parametrize("other", ["pytorch_model.bin", "consolidated.safetensors"])
def test_a_missing_shard_and_another_set_names_both(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, other: str
) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / SINGLE_FILE).rename(tmp_path / other)
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / SHARDS[1]).unlink()
    with pytest.raises(FileNotFoundError, match=SHARDS[1]) as caught:
        load_model(tmp_path)
    assert other in one_line(caught.value)


def test_an_index_of_pickled_files_is_refused(
    tmp_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    write_checkpoint(tmp_path, shards=2)
    rename_in_index(tmp_path, lambda file: file.replace(".safetensors", ".bin"))
    with pytest.raises(ValueError, match=r"model-00001-of-00002\.bin.*safetensors"):
        load_model(tmp_path)


def test_tensors_that_the_index_leaves_out_are_read(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, model: QwenVL
) -> None:
    write_checkpoint(tmp_path, model, shards=2)
    path = tmp_path / INDEX_FILE
    index = json.loads(path.read_text())
    for name in ("lm_head.weight", "model.norm.weight"):
        del index["weight_map"][name]
    path.write_text(json.dumps(index))
    assert is_loaded(tmp_path, model)


def test_a_tensor_in_two_shards_is_refused(
    tmp_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    write_checkpoint(tmp_path, shards=2)
    tensors = load_file(tmp_path / SHARDS[0])
    name = min(tensors)
    save_file(load_file(tmp_path / SHARDS[1]) | {name: tensors[name]}, tmp_path / SHARDS[1])
    with pytest.raises(ValueError, match=rf"{name}.* {SHARDS[0]} .*{SHARDS[1]}"):
        load_model(tmp_path)


def test_one_file_of_any_name_opens(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, model: QwenVL
) -> None:
    path = write_checkpoint(tmp_path, model) / SINGLE_FILE
    for name in ("model-00001-of-00001.safetensors", "consolidated.safetensors", "M.SAFETENSORS"):
        path = path.rename(tmp_path / name)
        assert is_loaded(tmp_path, model)
        assert find_weights(tmp_path).files == (name,)


def test_one_shard_of_several_is_refused(tmp_path: Path, write_checkpoint: WriteCheckpoint) -> None:
    write_checkpoint(tmp_path, shards=2)
    (tmp_path / INDEX_FILE).unlink()
    (tmp_path / SHARDS[1]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{SHARDS[0]} .*\b2 shards"):
        load_model(tmp_path)


@pytest.mark.parametrize("config", [True, False], ids=["with config.json", "without"])
@pytest.mark.parametrize("name", [ADAPTER, "adapter_model.bin"])
def test_an_adapter_alone_is_refused(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, config: bool, name: str
) -> None:
    if config:
        (write_checkpoint(tmp_path) / SINGLE_FILE).unlink()
    add_adapter(tmp_path, base="Qwen/Qwen2.5-VL-3B-Instruct")
    (tmp_path / ADAPTER).rename(tmp_path / name)
    (tmp_path / "training_args.bin").write_bytes(b"x")
    message = rf"adapter.*{name}.*Qwen/Qwen2\.5-VL-3B-Instruct.*merge"
    for opened in (resolve_model, load_model, CheckpointReader, QuantizedCheckpoint):
        with pytest.raises(ValueError, match=message) as caught:
            opened(tmp_path)
        one_line(caught.value)


def test_an_adapter_that_does_not_name_its_base(tmp_path: Path) -> None:
    add_adapter(tmp_path)
    with pytest.raises(ValueError, match=r"adapter.*base model"):
        resolve_model(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "model.layers.0.self_attn.q_proj.lora_A.default.weight",
        "model.embed_tokens.lora_embedding_A.default",
        "base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight",
    ],
)
def test_an_adapter_that_is_not_merged_into_the_weights(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, name: str
) -> None:
    write_checkpoint(tmp_path, extra={name: torch.zeros(4, 4)})
    with pytest.raises(ValueError, match=rf"{name}.*adapter.*merge") as caught:
        load_model(tmp_path)
    one_line(caught.value)


@pytest.mark.parametrize("shards", [1, 2])
def test_an_adapter_in_a_model_folder_is_not_applied(
    tmp_path: Path,
    write_checkpoint: WriteCheckpoint,
    model: QwenVL,
    caplog: pytest.LogCaptureFixture,
    shards: int,
) -> None:
    write_checkpoint(tmp_path, model, shards=shards)
    add_adapter(tmp_path, base="some/base")
    assert resolve_model(tmp_path) == tmp_path and is_loaded(tmp_path, model)
    (record,) = caplog.records
    assert ADAPTER in record.message and "some/base" in record.message
    assert "not applied" in record.message


@pytest.mark.parametrize("file", [SINGLE_FILE, SHARDS[1], "one.safetensors"])
def test_a_git_lfs_pointer_is_named(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, file: str
) -> None:
    write_checkpoint(tmp_path, shards=2 if file in SHARDS else 1)
    if file not in SHARDS:
        (tmp_path / SINGLE_FILE).unlink()
    (tmp_path / file).write_bytes(POINTER)
    with pytest.raises(ValueError, match=rf"{file}.*git lfs pull") as caught:
        load_model(tmp_path)
    one_line(caught.value)


def test_a_link_that_leads_nowhere_is_named(
    tmp_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    (write_checkpoint(tmp_path) / SINGLE_FILE).unlink()
    (tmp_path / SINGLE_FILE).symlink_to("../../blobs/0123")
    with pytest.raises(FileNotFoundError, match=r"blobs/0123\b"):
        load_model(tmp_path)


def test_weights_of_another_name_in_config(
    tmp_path: Path, write_checkpoint: WriteCheckpoint
) -> None:
    path = write_checkpoint(tmp_path) / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"transformers_weights": SINGLE_FILE}))
    assert CheckpointReader(tmp_path).names()
    path.write_text(json.dumps(raw | {"transformers_weights": "other.safetensors"}))
    with pytest.raises(ValueError, match=r"transformers_weights .*'other\.safetensors'"):
        CheckpointReader(tmp_path)


@pytest.mark.parametrize("shards", [1, 2])
def test_only_used_files_count(
    tmp_path: Path,
    write_checkpoint: WriteCheckpoint,
    random_model: RandomModel,
    shards: int,
) -> None:
    model = random_model()
    write_checkpoint(tmp_path, model, shards=shards)
    before = (
        count_weight_bytes(model, tmp_path),
        identify_checkpoint(tmp_path),
        digest_folder(tmp_path),
    )
    read = (SINGLE_FILE,) if shards == 1 else SHARDS
    assert before[0] == sum((tmp_path / name).stat().st_size for name in read)
    save_file({"x": torch.ones(9)}, tmp_path / "consolidated.safetensors")
    save_file({"x": torch.ones(9)}, tmp_path / "model-00009-of-00009.safetensors")
    save_file(LORA, tmp_path / ADAPTER)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 1000)
    if shards == 1:
        (tmp_path / INDEX_FILE).write_text("{}")
    after = (
        count_weight_bytes(model, tmp_path),
        identify_checkpoint(tmp_path),
        digest_folder(tmp_path),
    )
    assert after == before
    save_file({"x": torch.ones(9)}, tmp_path / read[-1])
    assert identify_checkpoint(tmp_path) != before[1] and digest_folder(tmp_path) != before[2]
