from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import pytest
from tiny_models import make_random_model, write_checkpoint_folder

import vlpress
from vlpress.model.config import ModelConfig
from vlpress.model.processing.pixel_settings import PixelSettings
from vlpress.quant.checkpoint.loading import open_model
from vlpress.quant.checkpoint.pixel_budget import (
    set_max_pixels,
    shares_video_settings,
    write_with_max_pixels,
)

AREA = 9 * 784


@pytest.mark.parametrize(
    ("settings", "changed"),
    [
        ({"max_pixels": 5000}, {"max_pixels": AREA}),
        ({"size": {"longest_edge": 5000, "shortest_edge": 9}}, {"size.longest_edge": AREA}),
        ({"size": {"max_pixels": 5000, "min_pixels": 9}}, {"size.max_pixels": AREA}),
        (
            {"size": {"longest_edge": 1, "shortest_edge": 1}, "max_pixels": 5000},
            {"size.longest_edge": AREA, "max_pixels": AREA},
        ),
        (
            {"size": {"longest_edge": 5000, "shortest_edge": 9}, "max_pixels": None},
            {"size.longest_edge": AREA},
        ),
        ({}, {"max_pixels": AREA}),
    ],
)
def test_every_spelling_is_set_and_nothing_else(
    settings: dict[str, Any], changed: dict[str, int]
) -> None:
    before = json.dumps(settings)
    result = set_max_pixels({**settings, "patch_size": 14}, AREA)
    expected = json.loads(before) | {"patch_size": 14}
    for key, value in changed.items():
        *outer, name = key.split(".")
        (expected[outer[0]] if outer else expected)[name] = value
    assert result == expected and json.dumps(settings) == before


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("shards", [1, 3])
def test_only_the_image_settings_differ(tmp_path: Path, shards: int) -> None:
    source, out = write_checkpoint_folder(tmp_path / "source", shards=shards), tmp_path / "out"
    (source / "notes.bin").write_bytes(b"training state")
    before = snapshot(source)
    out.mkdir()
    write_with_max_pixels(source, out, AREA)
    after = snapshot(out)
    assert snapshot(source) == before
    assert set(before) - set(after) == {"notes.bin"} and set(after) <= set(before)
    assert [n for n in after if after[n] != before[n]] == ["preprocessor_config.json"]
    vision = ModelConfig.from_folder(out).vision
    old, new = (PixelSettings.from_folder(each, vision) for each in (source, out))
    assert (new.min_pixels, new.max_pixels) == (old.min_pixels, AREA)
    weights = [name for name in after if name.endswith(".safetensors")]
    assert len(weights) == shards
    assert all(os.path.samefile(source / name, out / name) for name in weights)
    open_model(out, device="cpu")


def test_without_hard_links_weights_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links")

    source, out = write_checkpoint_folder(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr(os, "link", refuse)
    write_with_max_pixels(source, out, AREA)
    name = "model.safetensors"
    assert (out / name).read_bytes() == (source / name).read_bytes()
    assert not os.path.samefile(source / name, out / name)


def test_a_link_of_a_hub_cache_is_followed(tmp_path: Path) -> None:
    source, out = write_checkpoint_folder(tmp_path / "source"), tmp_path / "out"
    (source / "model.safetensors").rename(tmp_path / "blob")
    (source / "model.safetensors").symlink_to(tmp_path / "blob")
    out.mkdir()
    write_with_max_pixels(source, out, AREA)
    assert not (out / "model.safetensors").is_symlink()
    assert os.path.samefile(out / "model.safetensors", tmp_path / "blob")


@pytest.mark.parametrize(
    "write_images",
    [
        layouts.images_of_4_45,
        layouts.images_of_4_49,
        layouts.images_of_4_52,
        layouts.images_of_5,
        layouts.images_of_5_and_older,
    ],
)
def test_transformers_reads_the_budget(
    tmp_path: Path, write_images: Callable[[Path], None]
) -> None:
    """In the forms that its versions write, and with the minimum that it read before."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    source, out = write_checkpoint_folder(tmp_path / "source"), tmp_path / "out"
    (source / "preprocessor_config.json").unlink()
    write_images(source)
    out.mkdir()
    write_with_max_pixels(source, out, AREA)
    sizes: list[Any] = [
        Qwen2VLImageProcessorPil.from_pretrained(each).size for each in (source, out)
    ]
    before, after = sizes
    assert (after.shortest_edge, after.longest_edge) == (before.shortest_edge, AREA)
    assert before.longest_edge != AREA


def test_settings_of_the_processor_file_are_changed_too(tmp_path: Path) -> None:
    """`image_processor` of processor_config.json takes precedence over the other file."""
    source, out = write_checkpoint_folder(tmp_path / "source"), tmp_path / "out"
    images = json.loads((source / "preprocessor_config.json").read_text())
    nested = {"processor_class": "P", "image_processor": {**images, "max_pixels": 11 * 784}}
    (source / "processor_config.json").write_text(json.dumps(nested))
    out.mkdir()
    write_with_max_pixels(source, out, AREA)
    written = json.loads((out / "processor_config.json").read_text())
    assert written["image_processor"] == {**images, "max_pixels": AREA}
    assert written["processor_class"] == "P"
    assert json.loads((out / "preprocessor_config.json").read_text())["max_pixels"] == AREA


def test_an_area_below_the_minimum_is_refused(tmp_path: Path) -> None:
    source, out = write_checkpoint_folder(tmp_path / "source"), tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match="3135"):
        write_with_max_pixels(source, out, 3135)


def test_video_settings_of_their_own_are_noticed(tmp_path: Path) -> None:
    qwen3 = write_checkpoint_folder(tmp_path / "qwen3", make_random_model("qwen3_vl"))
    assert not shares_video_settings(qwen3)
    (qwen3 / "video_preprocessor_config.json").unlink()
    assert shares_video_settings(qwen3)
    (qwen3 / "processor_config.json").write_text(json.dumps({"video_processor": {}}))
    assert not shares_video_settings(qwen3)


def test_a_quantized_checkpoint_keeps_its_record(checkpoint: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    vlpress.quantize(checkpoint, source, recipe="w4a16-rtn", device="cpu")
    out.mkdir()
    write_with_max_pixels(source, out, AREA)
    assert (out / "vlpress.json").read_bytes() == (source / "vlpress.json").read_bytes()
    assert (out / "config.json").read_bytes() == (source / "config.json").read_bytes()
    open_model(out, device="cpu")
