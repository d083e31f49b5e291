"""The verbs `pack` and `unpack`, and checkpoints that are read packed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from format_files import checkpoint, recipe, same_logits
from tiny_models import make_random_model, write_checkpoint_folder

from vlpress.common.checksum import with_checksum
from vlpress.eval.fingerprint import count_weight_bytes, identify_checkpoint
from vlpress.model.checkpoint import CheckpointReader
from vlpress.model.loading import load_model
from vlpress.model.stored_files import MANIFEST
from vlpress.model.weight_files import digest_folder, find_weights
from vlpress.quant.api import inspect
from vlpress.quant.checkpoint.export import export
from vlpress.quant.checkpoint.formats.table import FORMATS
from vlpress.quant.checkpoint.pixel_budget import write_with_max_pixels
from vlpress.quant.driver.pipeline import load_quantized
from vlpress.quant.pack import pack, unpack
from vlpress.quant.recipe.recipe import Recipe


def tables(step: dict[str, Any]) -> Recipe:
    return Recipe.from_dict({"name": "test", "step": [step]})


W4 = recipe({"ignore": ["model.layers.1.mlp.down_proj"]})
FP8 = {"method": "rtn", "grid": "fp8", "activations": "dynamic"}
CHECKPOINTS = {
    "gptq": ("gptq", W4),
    "gptq 3 bits": ("gptq", recipe({"bits": 3})),
    "gptq_v2 asymmetric": ("gptq_v2", recipe({"symmetric": False})),
    "compressed-tensors": ("compressed-tensors", W4),
    "compressed-tensors 3 bits": ("compressed-tensors", recipe({"bits": 3})),
    "compressed-tensors 8 bits": (
        "compressed-tensors",
        recipe({"bits": 8, "group_size": -1, "activations": "dynamic"}),
    ),
    "nvfp4": ("compressed-tensors", tables({"method": "rtn", "grid": "nvfp4"})),
    "mxfp4": ("compressed-tensors", tables({"method": "rtn", "grid": "mxfp4"})),
    "awq": ("awq", recipe()),
    "fp8": ("fp8", tables(FP8 | {"group_size": 32, "scale_rows": 32})),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three shards with an index, side files, a folder, and an empty file of weights."""
    folder = write_checkpoint_folder(tmp_path / "source", make_random_model(), shards=3)
    (folder / "more" / "deep").mkdir(parents=True)
    (folder / "more" / "deep" / "note.txt").write_bytes(b"a\r\n\xff")
    (folder / ".hidden").write_text("left out")
    return folder


@pytest.fixture
def packed(source: Path, tmp_path: Path) -> Path:
    pack(source, tmp_path / "packed")
    return tmp_path / "packed"


def test_an_unpacked_folder_has_the_same_files(source: Path, packed: Path, tmp_path: Path) -> None:
    (source / ".hidden").unlink()
    result = unpack(packed, tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)
    assert result["files"] == len(contents(source)) and not result["unknown"]
    assert not list(packed.glob("*.safetensors")) and len(list(packed.glob("*.vlz"))) == 3
    assert ".hidden" not in contents(packed)


def test_every_format_is_tested() -> None:
    assert {format for format, _ in CHECKPOINTS.values()} == set(FORMATS)


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_every_format_is_restored_and_read_packed(
    tmp_path: Path, kind: str, reference_kernel: None
) -> None:
    format, rule = CHECKPOINTS[kind]
    model, _, folder = checkpoint(tmp_path, rule, format, shards=2)
    pack(folder, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(folder)
    assert same_logits(model, load_quantized(tmp_path / "packed", device="cpu"))
    shown = inspect(tmp_path / "packed")
    assert {**shown, "checkpoint": ""} == {**inspect(folder), "checkpoint": ""}


def test_a_float_checkpoint_is_read_packed(source: Path, packed: Path) -> None:
    expected = load_model(source, device="cpu").state_dict()
    tensors = load_model(packed, device="cpu").state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_packed_checkpoint_has_the_identity_of_the_original(source: Path, packed: Path) -> None:
    assert digest_folder(packed) == digest_folder(source)
    assert identify_checkpoint(packed) == identify_checkpoint(source)
    assert find_weights(packed).bytes == find_weights(source).bytes
    model = make_random_model()
    assert count_weight_bytes(model, packed) == count_weight_bytes(model, source)


def test_an_export_of_a_packed_checkpoint_is_that_of_the_original(
    tmp_path: Path, reference_kernel: None
) -> None:
    _, _, folder = checkpoint(tmp_path, W4, "gptq")
    pack(folder, tmp_path / "packed")
    export(folder, tmp_path / "one", "awq")
    export(tmp_path / "packed", tmp_path / "two", "awq")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_weights_are_unpacked_for_another_pixel_budget(
    source: Path, packed: Path, tmp_path: Path
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    write_with_max_pixels(source, tmp_path / "one", 40000)
    write_with_max_pixels(packed, tmp_path / "two", 40000)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_result_has_the_sizes(source: Path, packed: Path) -> None:
    result = pack(source, packed)
    files = contents(packed)
    assert result["packed_bytes"] == sum(map(len, files.values()))
    original = {name: data for name, data in contents(source).items() if name != ".hidden"}
    assert result["bytes"] == sum(map(len, original.values()))
    (row,) = result["tensors"]
    assert row["dtype"] == "F32" and row["tensors"] == len(CheckpointReader(source).names())
    assert row["bytes"] == 4 * sum(p.numel() for p in make_random_model().state_dict().values())
    assert 0.7 < row["packed_bytes"] / row["bytes"] < 0.95


def test_packing_is_deterministic(source: Path, packed: Path, tmp_path: Path) -> None:
    pack(source, tmp_path / "again", threads=3)
    assert contents(tmp_path / "again") == contents(packed)


def test_finished_work_is_not_repeated(source: Path, packed: Path, tmp_path: Path) -> None:
    unpack(packed, tmp_path / "back")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    pack(source, packed)
    unpack(packed, tmp_path / "back")
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_another_result_is_replaced_on_request_only(
    source: Path, packed: Path, tmp_path: Path
) -> None:
    unpack(packed, tmp_path / "back")
    (source / "README.md").write_text("new")
    with pytest.raises(ValueError, match="--overwrite"):
        pack(source, packed)
    (tmp_path / "back" / "config.json").write_text("changed")
    with pytest.raises(ValueError, match="--overwrite"):
        unpack(packed, tmp_path / "back")
    unpack(packed, tmp_path / "back", overwrite=True)
    pack(source, packed, overwrite=True)
    assert (packed / "README.md").read_text() == "new"


def test_what_a_killed_process_left_is_removed(source: Path, packed: Path, tmp_path: Path) -> None:
    left = [tmp_path / f".{name}.vlpress-staged" / name for name in ("again", "back")]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "model.safetensors.vlz").write_text("incomplete")
    pack(source, tmp_path / "again")
    unpack(packed, tmp_path / "back")
    assert contents(tmp_path / "again") == contents(packed)
    assert not any(folder.parent.exists() for folder in left)


def test_an_error_while_packing_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (shard, *_) = sorted(source.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=shard.name):
        pack(source, tmp_path / "packed")
    assert sorted(tmp_path.iterdir()) == before


def test_the_marker_of_a_run_may_be_missing(source: Path, tmp_path: Path) -> None:
    """`push` does not upload it."""
    (source / "work.json").write_text("{}")
    pack(source, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "one")
    assert (tmp_path / "one" / "work.json").read_text() == "{}"
    (tmp_path / "packed" / "work.json").unlink()
    unpack(tmp_path / "packed", tmp_path / "two")
    assert contents(tmp_path / "one").keys() - contents(tmp_path / "two").keys() == {"work.json"}


def test_foreign_files_are_not_removed(source: Path, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        pack(source, out, overwrite=True)
    with pytest.raises(ValueError, match=r"thesis\.txt"):
        unpack(packed, out, overwrite=True)
    assert contents(out) == {"thesis.txt": b"x"}


def test_the_source_is_never_the_output(source: Path, packed: Path) -> None:
    with pytest.raises(ValueError):
        pack(source, source)
    with pytest.raises(ValueError):
        unpack(packed, packed)


def test_a_packed_folder_is_not_packed_again(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="packed already"):
        pack(packed, tmp_path / "twice")


def test_an_unpacked_folder_is_not_unpacked(source: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=MANIFEST):
        unpack(source, tmp_path / "out")


def test_both_forms_of_a_file_are_refused(source: Path, packed: Path) -> None:
    (shard, *_) = sorted(source.glob("*.safetensors"))
    shutil.copy(shard, packed)
    with pytest.raises(ValueError, match=shard.name):
        load_model(packed, device="cpu")


def refused(packed: Path, out: Path, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as caught:
        unpack(packed, out)
    assert not out.exists() and "\n" not in str(caught.value)
    return str(caught.value)


def test_damaged_folders_are_refused_and_nothing_is_written(packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (one, two, _) = sorted(packed.glob("*.vlz"))
    sound = contents(packed)

    (packed / "config.json").write_bytes(sound["config.json"] + b" ")
    assert "config.json" in refused(packed, out)
    (packed / "config.json").unlink()
    assert "config.json" in refused(packed, out, FileNotFoundError)
    (packed / "config.json").write_bytes(sound["config.json"])

    data = bytearray(sound[one.name])
    data[len(data) // 2] ^= 1
    one.write_bytes(data)
    assert one.name in refused(packed, out)
    one.write_bytes(sound[two.name])  # whole, but of another shard
    assert one.name in refused(packed, out)
    one.unlink()
    assert one.name.removesuffix(".vlz") in refused(packed, out, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        load_model(packed, device="cpu")


@pytest.mark.parametrize(
    "files",
    [
        {"../x": {"size": 1, "sha256": ""}},
        {"C:\\x": {"size": 1, "sha256": ""}},
        {"x": {"size": -1, "sha256": ""}},
        {"x": {}},
        [],
    ],
)
def test_a_forged_manifest_is_refused(packed: Path, tmp_path: Path, files: object) -> None:
    manifest: Mapping[str, Any] = {"version": 1, "files": files}
    (packed / MANIFEST).write_text(json.dumps(with_checksum(manifest)))
    assert MANIFEST in refused(packed, tmp_path / "out")


def test_a_damaged_manifest_is_refused(packed: Path, tmp_path: Path) -> None:
    text = (packed / MANIFEST).read_text()
    (packed / MANIFEST).write_text(text.replace('"size": ', '"size": 1', 1))
    assert MANIFEST in refused(packed, tmp_path / "out")


def test_files_that_are_not_in_the_manifest_are_named(
    packed: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (packed / "extra.txt").write_text("x")
    result = unpack(packed, tmp_path / "out")
    assert result["unknown"] == ["extra.txt"] and not (tmp_path / "out" / "extra.txt").exists()
    assert "extra.txt" in caplog.text


def test_links_to_files_are_followed_and_others_refused(source: Path, tmp_path: Path) -> None:
    (source / "README.md").symlink_to(source / "config.json")
    pack(source, tmp_path / "packed")
    assert (tmp_path / "packed" / "README.md").read_bytes() == (source / "config.json").read_bytes()
    os.symlink(tmp_path, source / "elsewhere")
    with pytest.raises(ValueError, match="elsewhere"):
        pack(source, tmp_path / "other")


def test_an_empty_file_of_weights_is_carried(source: Path, tmp_path: Path) -> None:
    """Some trainers save one together with the shards."""
    (source / "model.safetensors").touch()
    (source / ".hidden").unlink()
    pack(source, tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(source)
    assert len(load_model(tmp_path / "packed", device="cpu").state_dict())
