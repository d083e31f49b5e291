"""Opening, sizing and cutting pictures."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import TinyConfig

from vlpress.model.images import (
    MAX_PICTURE_PIXELS,
    open_image,
    smart_resize,
    to_patches,
    to_rgb,
)
from vlpress.model.pixel_settings import PixelSettings

VECTORS = json.loads((Path(__file__).parents[1] / "golden" / "smart_resize.json").read_text())


def test_smart_resize_vectors() -> None:
    assert len(VECTORS) == 105
    refused = 0
    for case in VECTORS:
        arguments = (case["h"], case["w"], 28, case["min_pixels"], case["max_pixels"])
        if case["expected_hw"] is None:
            refused += 1
            with pytest.raises(ValueError, match=r"aspect ratio \d+ is over 200"):
                smart_resize(*arguments)
        else:
            assert list(smart_resize(*arguments)) == case["expected_hw"], case
    assert refused > 0


@given(height=st.integers(1, 4000), width=st.integers(1, 4000), low=st.integers(784, 10**6))
def test_smart_resize_keeps_its_promises(height: int, width: int, low: int) -> None:
    assume(max(height, width) / min(height, width) <= 200)
    high = low * 4
    new_height, new_width = smart_resize(height, width, 28, low, high)
    assert new_height % 28 == 0 and new_width % 28 == 0
    assert new_height * new_width >= low or min(new_height, new_width) == 28
    assert new_height * new_width <= high or min(new_height, new_width) == 28


def test_smart_resize_refusals() -> None:
    with pytest.raises(ValueError, match="image of 2010 x 10 pixels: aspect ratio 201 is over 200"):
        smart_resize(10, 2010)
    with pytest.raises(ValueError, match="image of 5 x 0 pixels is empty"):
        smart_resize(0, 5)


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_all_sources_give_the_same_picture(tmp_path: Path) -> None:
    image = gradient()
    data = encoded(image)
    path = tmp_path / "a picture.png"
    path.write_bytes(data)
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (image, data, path, str(path), path.as_uri(), url):
        opened = open_image(source)
        assert opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), np.asarray(image))


def test_exif_orientation_is_applied_to_files() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn a quarter clockwise
    assert open_image(encoded(gradient(), "JPEG", exif=exif)).size == (30, 40)


def test_transparency_becomes_white() -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (10, 20, 30, 255))
    assert [to_rgb(image).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]
    palette = Image.new("P", (1, 1))
    palette.info["transparency"] = 0
    assert to_rgb(palette).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "YCbCr", "HSV", "F", "I"])
def test_other_modes_become_rgb(mode: str) -> None:
    assert to_rgb(Image.new(mode, (3, 2))).mode == "RGB"


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_sixteen_bit_grey_is_scaled_not_clipped(mode: str) -> None:
    grey = np.array([[0, 257 * 100, 65535]])
    image = Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.int32))
    assert image.mode == mode
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 100, 255]


def test_pictures_that_do_not_decode() -> None:
    data = encoded(gradient())
    for bad in (b"", b"no image at all", data[: len(data) // 2]):
        with pytest.raises(
            ValueError, match=r"cannot be decoded as an image .*give a complete PNG"
        ):
            open_image(bad)
    with pytest.raises(ValueError, match=r"image \(no known kind of picture\); give"):
        open_image(b"no image at all")
    with pytest.raises(ValueError, match="not valid base64"):
        open_image("data:image/png;base64,@@@")


def test_pictures_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        open_image(tmp_path / "none.png")
    for url in ("https://example.org/a.png", "HTTP://example.org/a.png", "s3://bucket/a.png"):
        with pytest.raises(ValueError, match="download it first"):
            open_image(url)


@pytest.mark.parametrize("side", [9460, 30000])
def test_decompression_bombs_are_refused_unread(side: int) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    length, checksum = struct.pack(">I", len(header) - 4), struct.pack(">I", zlib.crc32(header))
    bomb = b"\x89PNG\r\n\x1a\n" + length + header + checksum + encoded(gradient())[33:]
    with pytest.raises(ValueError, match=f"too many pixels; allowed: {MAX_PICTURE_PIXELS}"):
        open_image(bomb)


def test_patches_hold_the_right_pixels(tiny_config: TinyConfig) -> None:
    vision = tiny_config().vision
    settings = PixelSettings(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    generator = np.random.default_rng(0)
    frames = [generator.integers(0, 256, (56, 84, 3), dtype=np.uint8) for _ in range(4)]
    patches = to_patches(frames, vision, settings).view(2, 2, 3, 2, 2, 3, 2, 14, 14)
    for time, row, column, below, right in np.ndindex(2, 2, 3, 2, 2):
        y, x = (2 * row + below) * 14, (2 * column + right) * 14
        for channel, frame in np.ndindex(3, 2):
            pixels = frames[2 * time + frame][y : y + 14, x : x + 14, channel]
            wanted = (pixels / 255 - settings.mean[channel]) / settings.std[channel]
            found = patches[time, row, column, below, right, channel, frame]
            torch.testing.assert_close(found, torch.from_numpy(wanted).float())
