"""Image settings of a checkpoint folder, held against transformers' image processor."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_models import TinyConfig

from vlpress.model.processing.images import resize, smart_resize
from vlpress.model.processing.patches import to_patches
from vlpress.model.processing.pixel_settings import CLIP_MEAN, CLIP_STD, PixelSettings

PREPROCESSOR, PROCESSOR = "preprocessor_config.json", "processor_config.json"
BASE: dict[str, Any] = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
}
PIXELS = {"min_pixels": 3136, "max_pixels": 50176}
EDGES = {"shortest_edge": 3136, "longest_edge": 50176}
# As the fast image processor of transformers 4 writes it.
FAST = {
    "image_processor_type": "Qwen2VLImageProcessorFast",
    **dict.fromkeys(("crop_size", "device", "disable_grouping", "do_center_crop", "do_pad")),
    **dict.fromkeys(("input_data_format", "pad_size", "return_tensors")),
    **dict.fromkeys(("do_convert_rgb", "do_normalize", "do_rescale", "do_resize"), True),
    "data_format": "channels_first",
    "default_to_square": True,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": EDGES,
}


def write(folder: Path, file: str, content: object) -> None:
    if content is not None:
        (folder / file).write_text(json.dumps(content))


def ours(folder: Path, tiny_config: TinyConfig) -> PixelSettings:
    return PixelSettings.from_folder(folder, tiny_config().vision)


def refused(folder: Path, tiny_config: TinyConfig, *names: str) -> None:
    with pytest.raises(ValueError) as caught:
        ours(folder, tiny_config)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert all(name in message for name in (str(folder), *names)), message


def theirs(folder: Path) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Qwen2VLImageProcessorPil.from_pretrained(folder)


def make_image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


USABLE: dict[str, tuple[dict[str, Any] | None, dict[str, Any] | None]] = {
    "edges": ({"size": EDGES}, None),
    "edges with nulls": ({"min_pixels": None, "max_pixels": None, "size": EDGES}, None),
    "pixels go before edges": ({**PIXELS, "size": {**EDGES, "longest_edge": 12845056}}, None),
    "one of the pixels": ({"max_pixels": 50176, "size": {**EDGES, "longest_edge": 12845056}}, None),
    "one edge, one of the pixels": ({"max_pixels": 50176, "size": {"shortest_edge": 3136}}, None),
    "pixels alone": (PIXELS, None),
    "pixels with null": ({**PIXELS, "size": None}, None),
    "pixels in both forms": (
        {**PIXELS, "size": {"min_pixels": 784, "max_pixels": 12845056}},  # transformers 4.45
        None,
    ),
    "nothing": ({}, None),
    "nested with older": ({**PIXELS, "max_pixels": 12845056}, {"size": EDGES}),
    "nested with refused": ({"size": 448, "resample": 1}, {"size": EDGES}),
    "nested alone": (None, {"size": EDGES}),
    "nested with pixels": ({"size": EDGES}, {**PIXELS, "size": {**EDGES, "longest_edge": 99999}}),
    "fast": ({**FAST, **PIXELS}, None),
    "mean of one number": ({**PIXELS, "image_mean": 0.5, "image_std": 0.25}, None),
    "whole floats": ({"min_pixels": 3136.0, "max_pixels": 50176.0}, None),
    "other normalization": (
        {**PIXELS, "image_mean": [0.5, 0.4, 0.3], "image_std": [1, 0.5, 2], "rescale_factor": 0.01},
        None,
    ),
}


@pytest.mark.parametrize("name", list(USABLE))
def test_settings_are_read_as_transformers_reads_them(
    tmp_path: Path, tiny_config: TinyConfig, name: str
) -> None:
    pre, nested = USABLE[name]
    write(tmp_path, PREPROCESSOR, None if pre is None else {**BASE, **pre})
    write(tmp_path, PROCESSOR, nested and {"image_processor": {**BASE, **nested}})
    settings, vision = ours(tmp_path, tiny_config), tiny_config().vision
    processor, image = theirs(tmp_path), make_image()
    assert settings.min_pixels == processor.size.shortest_edge
    assert settings.max_pixels == processor.size.longest_edge
    height, width = smart_resize(300, 420, 28, settings.min_pixels, settings.max_pixels)
    patches = to_patches([resize(image, height, width)] * 2, vision, settings).numpy()
    expected = processor(images=[image], return_tensors="np")
    assert expected["image_grid_thw"].tolist() == [[1, height // 14, width // 14]]
    np.testing.assert_allclose(patches, expected["pixel_values"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("nested", [{}, {"image_processor": None}, {"processor_class": "X"}])
def test_processor_config_without_image_settings(
    tmp_path: Path, tiny_config: TinyConfig, nested: dict[str, Any]
) -> None:
    write(tmp_path, PREPROCESSOR, {**BASE, **PIXELS})
    write(tmp_path, PROCESSOR, nested)
    assert theirs(tmp_path).size.longest_edge == 50176
    assert ours(tmp_path, tiny_config) == PixelSettings(3136, 50176)


def test_a_folder_without_settings(tmp_path: Path, tiny_config: TinyConfig) -> None:
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json"):
        ours(tmp_path, tiny_config)


# What transformers cannot use either: it raises, on opening or for the first image.
UNUSABLE: list[tuple[dict[str, Any], str]] = [
    ({"size": {"min_pixels": 3136, "max_pixels": 50176}}, "size"),
    ({"size": 448}, "size"),
    ({**PIXELS, "size": 448}, "size"),
    ({"size": [448, 448]}, "size"),
    ({"size": "large"}, "size"),
    ({"size": {}}, "size"),
    ({"size": {"height": 448, "width": 448}}, "size"),
    ({**PIXELS, "size": {"height": 448, "width": 448}}, "size"),
    ({"size": {"shortest_edge": 3136}}, "size"),
    ({"size": {"shortest_edge": None, "longest_edge": 50176}}, "size.shortest_edge"),
    ({**PIXELS, "max_pixels": "50176"}, "max_pixels"),
    ({**PIXELS, "max_pixels": [50176]}, "max_pixels"),
    ({**PIXELS, "min_pixels": {}}, "min_pixels"),
    ({**PIXELS, "min_pixels": 0}, "min_pixels"),
    ({**PIXELS, "max_pixels": 0}, "max_pixels"),
    ({**PIXELS, "image_mean": [0.5]}, "image_mean"),
    ({**PIXELS, "image_mean": [0.5] * 4}, "image_mean"),
    ({**PIXELS, "image_mean": []}, "image_mean"),
    ({**PIXELS, "image_mean": None}, "image_mean"),
    ({**PIXELS, "image_std": [0.5, 0.5]}, "image_std"),
    ({**PIXELS, "image_std": None}, "image_std"),
    ({**PIXELS, "image_std": {"r": 1}}, "image_std"),
    ({**PIXELS, "rescale_factor": None}, "rescale_factor"),
    ({**PIXELS, "rescale_factor": "1/255"}, "rescale_factor"),
    ({**PIXELS, "patch_size": "14"}, "patch_size"),
    ({**PIXELS, "merge_size": None}, "merge_size"),
]
# What transformers follows (or notices for some images only), though it makes no sense or is not
# this preprocessing.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"size": {"shortest_edge": "3136", "longest_edge": 50176}}, "size.shortest_edge"),
    ({**PIXELS, "image_mean": ["0.5"] * 3}, "image_mean"),
    ({**PIXELS, "image_mean": "0.5"}, "image_mean"),
    ({"min_pixels": 200704, "max_pixels": 50176}, "min_pixels"),
    ({"size": {"shortest_edge": 200704, "longest_edge": 50176}}, "min_pixels"),
    ({"min_pixels": 2**30, "max_pixels": 2**31}, "min_pixels"),
    ({**PIXELS, "min_pixels": -1}, "min_pixels"),
    ({**PIXELS, "min_pixels": True}, "min_pixels"),
    ({**PIXELS, "max_pixels": float("nan")}, "max_pixels"),
    ({**PIXELS, "max_pixels": float("inf")}, "max_pixels"),
    ({**PIXELS, "max_pixels": 50176.5}, "max_pixels"),
    ({**PIXELS, "image_std": [0.5, 0, 0.5]}, "image_std"),
    ({**PIXELS, "image_std": [0.5, -1, 0.5]}, "image_std"),
    ({**PIXELS, "image_mean": [0.5, float("nan"), 0.5]}, "image_mean"),
    ({**PIXELS, "image_mean": [True] * 3}, "image_mean"),
    ({**PIXELS, "rescale_factor": float("inf")}, "rescale_factor"),
    ({**PIXELS, "rescale_factor": 0}, "rescale_factor"),
    ({**PIXELS, "resample": 1}, "resample"),
    ({**PIXELS, "resample": None}, "resample"),
    ({**PIXELS, "patch_size": 16}, "patch_size"),
    ({**PIXELS, "temporal_patch_size": 1}, "temporal_patch_size"),
    *(({**PIXELS, f"do_{step}": False}, step) for step in ("resize", "rescale", "normalize")),
    *(({**PIXELS, f"do_{step}": None}, step) for step in ("resize", "rescale", "convert_rgb")),
    ({**PIXELS, "image_processor_type": "CLIPImageProcessor"}, "CLIPImageProcessor"),
]


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("changes", "name"), UNUSABLE + REFUSED)
def test_settings_that_cannot_be_followed(
    tmp_path: Path, tiny_config: TinyConfig, changes: dict[str, Any], name: str, nested: bool
) -> None:
    file, content = PREPROCESSOR, {**BASE, **changes}
    if nested:
        write(tmp_path, PREPROCESSOR, {**BASE, **PIXELS})
        file, content = PROCESSOR, {"image_processor": content}
    write(tmp_path, file, content)
    refused(tmp_path, tiny_config, file, name)


@pytest.mark.parametrize(("changes", "name"), UNUSABLE)
def test_transformers_cannot_follow_them_either(
    tmp_path: Path, changes: dict[str, Any], name: str
) -> None:
    write(tmp_path, PREPROCESSOR, {**BASE, **changes})
    with pytest.raises(Exception):  # noqa: B017 - of many types
        theirs(tmp_path)(images=[make_image()], return_tensors="np")


@pytest.mark.parametrize("nested", [5, "x", [], [{}], False])
def test_nested_settings_that_are_no_object(
    tmp_path: Path, tiny_config: TinyConfig, nested: object
) -> None:
    write(tmp_path, PREPROCESSOR, {**BASE, **PIXELS})
    write(tmp_path, PROCESSOR, {"image_processor": nested})
    refused(tmp_path, tiny_config, PROCESSOR, "image_processor")


@pytest.mark.parametrize("file", [PREPROCESSOR, PROCESSOR])
@pytest.mark.parametrize("content", [b"", b"[]", b"null", b"{", b"\xff", b"[" * 10**5])
def test_files_that_are_no_json_object(
    tmp_path: Path, tiny_config: TinyConfig, file: str, content: bytes
) -> None:
    write(tmp_path, PREPROCESSOR, {**BASE, **PIXELS})
    (tmp_path / file).write_bytes(content)
    refused(tmp_path, tiny_config, file)


def test_arguments_override_the_file(tmp_path: Path, tiny_config: TinyConfig) -> None:
    write(tmp_path, PREPROCESSOR, {**BASE, **PIXELS})
    vision = tiny_config().vision
    assert PixelSettings.from_folder(tmp_path, vision, max_pixels=6272).max_pixels == 6272
    both = PixelSettings.from_folder(tmp_path, vision, min_pixels=784, max_pixels=1568)
    assert (both.min_pixels, both.max_pixels) == (784, 1568)
    with pytest.raises(ValueError, match=r"min_pixels 60000 .*max_pixels 50176"):
        PixelSettings.from_folder(tmp_path, vision, min_pixels=60000)
    for pixels in (0, -5):
        with pytest.raises(ValueError, match=rf"min_pixels {pixels}\b"):
            PixelSettings.from_folder(tmp_path, vision, min_pixels=pixels)
        with pytest.raises(ValueError, match=rf"max_pixels {pixels}\b"):
            PixelSettings.from_folder(tmp_path, vision, max_pixels=pixels)
