"""Decoding, scaling and cutting images."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import paths
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import TinyConfig

from vlpress.model.processing.images import (
    MAX_IMAGE_PIXELS,
    check_sides,
    fit_size,
    open_image,
    smart_resize,
    to_rgb,
)
from vlpress.model.processing.patches import to_patches
from vlpress.model.processing.pixel_settings import PixelSettings

VECTORS = json.loads((paths.GOLDEN / "smart_resize.json").read_text())


def test_smart_resize_vectors() -> None:
    assert len(VECTORS) == 105
    refused = 0
    for case in VECTORS:
        arguments = (case["h"], case["w"], 28, case["min_pixels"], case["max_pixels"])
        if case["expected_hw"] is None:
            refused += 1
            with pytest.raises(ValueError, match=r"aspect ratio \d+.*\b200\b"):
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
    with pytest.raises(ValueError, match=r"2010 x 10 .*aspect ratio 201\b.*\b200\b"):
        smart_resize(10, 2010)
    with pytest.raises(ValueError, match="5 x 0"):
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


def test_all_sources_give_the_same_image(tmp_path: Path) -> None:
    image = gradient()
    data = encoded(image)
    path = tmp_path / "an image.png"
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


WHITE, RED = (255, 255, 255), (255, 0, 0)


def on_white(mode: str) -> list[Any]:
    """The first pixel transparent, the second opaque red or black, as `mode` holds them."""
    image = Image.new("RGBA", (2, 1), (9, 9, 9, 0))
    image.putpixel((1, 0), (255, 0, 0, 255) if "RGB" in mode or mode == "PA" else (0, 0, 0, 255))
    if mode == "PA":
        palette = Image.new("PA", (2, 1))
        palette.putpalette([0, 0, 0, 255, 0, 0])
        palette.putpixel((1, 0), (1, 255))
        image = palette
    steps = {"LA": ["LA"], "La": ["LA", "La"], "RGBa": ["RGBa"]}
    for step in steps.get(mode, []):
        image = image.convert(step)
    assert image.mode == mode
    return [to_rgb(image).getpixel((x, 0)) for x in (0, 1)]


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "PA"])
def test_every_kind_of_alpha_is_over_white(mode: str) -> None:
    assert on_white(mode) == [WHITE, RED]


@pytest.mark.parametrize("mode", ["LA", "La"])
def test_grey_alpha_is_over_white(mode: str) -> None:
    assert on_white(mode) == [WHITE, (0, 0, 0)]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16"])
def test_a_transparent_colour_is_white(mode: str) -> None:
    # 16-bit grey and bilevel images have no alpha, but PNG lets one value stand for transparent.
    levels = np.array([[0, 3]], np.uint16) * 257
    image = Image.fromarray(levels) if mode == "I;16" else Image.new(mode, (2, 1))
    if mode in ("L", "RGB"):
        image.putpixel((1, 0), 3 if mode == "L" else (3, 3, 3))
    data = encoded(image, transparency=(0, 0, 0) if mode == "RGB" else 0)
    first, second = (open_image(data).getpixel((x, 0)) for x in (0, 1))
    assert first == WHITE
    assert second == (WHITE if mode == "1" else (3, 3, 3))


@pytest.mark.parametrize(
    ("mode", "colour", "shown"),
    [
        ("1", 1, WHITE),
        ("L", 77, (77, 77, 77)),
        ("P", 0, (0, 0, 0)),
        ("CMYK", (0, 255, 255, 0), RED),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("HSV", (0, 255, 255), RED),
        ("RGBX", (255, 0, 0, 0), RED),
    ],
)
def test_other_modes_become_rgb(mode: str, colour: Any, shown: tuple[int, ...]) -> None:
    converted = to_rgb(Image.new(mode, (3, 2), colour))
    assert converted.mode == "RGB" and converted.getpixel((2, 1)) == shown


def test_lab_files_become_rgb() -> None:
    from PIL import ImageCms

    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    colour = Image.new("RGB", (4, 4), (200, 30, 60))
    lab = ImageCms.profileToProfile(colour, *profiles, outputMode="LAB")
    assert lab is not None
    found = np.asarray(open_image(encoded(lab, "TIFF")), dtype=int)
    assert np.abs(found - [200, 30, 60]).max() <= 2


LEVELS = np.array([[0, 257 * 100, 65535]])


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_sixteen_bit_grey_is_scaled_not_clipped(mode: str) -> None:
    kinds = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4", "F": "<f4"}
    raw = LEVELS.astype(kinds[mode]).tobytes()
    image = Image.frombytes(mode, (3, 1), raw)
    assert np.asarray(to_rgb(image))[0, :, 0].tolist() == [0, 100, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_sixteen_bit_grey_of_files(kind: str) -> None:
    dark = np.repeat(np.repeat(LEVELS // 257, 16, 0), 16, 1)
    for factor, shown in ((257, [0, 100, 255]), (1, [0, 0, 0])):
        image = Image.fromarray((dark * factor).astype(np.uint16))
        found = np.asarray(open_image(encoded(image, kind)))[0, ::16, 0]
        assert found.tolist() == [min(value, 255) if factor > 1 else 0 for value in shown]


def test_float_grey_from_0_to_1_is_not_black() -> None:
    unit = Image.fromarray(np.array([[0, 0.2, 1]], np.float32))
    assert np.asarray(open_image(encoded(unit, "TIFF")))[0, :, 0].tolist() == [0, 51, 255]
    byte = Image.fromarray(np.array([[0, 51, 255]], np.float32))
    assert np.asarray(to_rgb(byte))[0, :, 0].tolist() == [0, 51, 255]


@pytest.mark.parametrize("value", [-1.0, 65536.0, float("nan"), float("inf")])
def test_grey_of_unknown_range_is_refused(value: float) -> None:
    image = Image.fromarray(np.array([[0, value]], np.float32))
    with pytest.raises(ValueError, match="0 to 65535"):
        to_rgb(image)
    with pytest.raises(ValueError, match="0 to 65535"):
        open_image(encoded(image, "TIFF"))


def test_sixteen_bit_rgb_png_keeps_the_high_bytes() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    row = zlib.compress(b"\0" + struct.pack(">HHH", 257 * 200, 257 * 30, 257 * 60))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    assert open_image(data).getpixel((0, 0)) == (200, 30, 60)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, (0, 255, 0))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert open_image(data).getpixel((4, 4)) == RED


def test_the_orientation_of_a_pillow_image_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    header = Image.open(io.BytesIO(encoded(gradient(), "JPEG", exif=exif)))
    assert open_image(header).size == (40, 30)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_all_orientations_show_the_same_image(orientation: int) -> None:
    how = Image.Transpose
    # What undoes each orientation, the definition of the tag read backwards.
    stored = {
        2: how.FLIP_LEFT_RIGHT,
        3: how.ROTATE_180,
        4: how.FLIP_TOP_BOTTOM,
        5: how.TRANSPOSE,
        6: how.ROTATE_90,
        7: how.TRANSVERSE,
        8: how.ROTATE_270,
    }
    image, exif = gradient(), Image.Exif()
    exif[0x0112] = orientation
    turned = image.transpose(stored[orientation]) if orientation > 1 else image
    for kind in ("PNG", "TIFF"):
        found = open_image(encoded(turned, kind, exif=exif))
        assert np.array_equal(np.asarray(found), np.asarray(image)), kind


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"])
def test_files_that_end_early_are_refused(kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(ValueError, match="decoded") as refusal:
            open_image(data[: int(len(data) * share)])
        assert "\n" not in str(refusal.value)


def test_one_set_of_bounds() -> None:
    check_sides(200, 1)
    check_sides(1, 200)
    check_sides(1, 1)
    for width, height, named in (
        (201, 1, "aspect ratio 201"),
        (1, 300, "aspect ratio 300"),
        (2001, 10, r"aspect ratio 200\.1"),
        (0, 5, "empty"),
        (9460, 9460, str(MAX_IMAGE_PIXELS)),
    ):
        with pytest.raises(ValueError, match=named):
            check_sides(width, height)
    for elongated in (Image.new("L", (201, 1)), encoded(Image.new("L", (201, 1)))):
        with pytest.raises(ValueError, match="aspect ratio 201"):
            open_image(elongated)
    assert open_image(encoded(Image.new("L", (1, 1)))).size == (1, 1)


def test_a_size_that_is_asked_for() -> None:
    image = Image.new("RGB", (100, 50))
    assert fit_size(image, 28, (784, 10**6)) == smart_resize(50, 100, 28, 784, 10**6)
    # Rounded to whole patches within 4 and 16384 tokens, regardless of the checkpoint's bounds.
    assert fit_size(image, 28, (784, 784), (100, 300)) == (112, 308)
    assert fit_size(image, 28, (10**6, 10**6), (28, 28)) == (56, 56)
    height, width = fit_size(image, 28, (784, 784), (9000, 9000))
    assert height == width == 3584


def test_images_that_do_not_decode() -> None:
    data = encoded(gradient())
    for bad in (b"", b"no image at all", data[: len(data) // 2]):
        with pytest.raises(ValueError, match=r"decoded .*PNG"):
            open_image(bad)
    with pytest.raises(ValueError, match="format"):
        open_image(b"no image at all")
    with pytest.raises(ValueError, match="base64"):
        open_image("data:image/png;base64,@@@")


def test_images_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        open_image(tmp_path / "none.png")
    for url in ("https://example.org/a.png", "HTTP://example.org/a.png", "s3://bucket/a.png"):
        with pytest.raises(ValueError, match="download"):
            open_image(url)


@pytest.mark.parametrize("side", [9460, 30000])
def test_decompression_bombs_are_refused_unread(side: int) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    length, checksum = struct.pack(">I", len(header) - 4), struct.pack(">I", zlib.crc32(header))
    bomb = b"\x89PNG\r\n\x1a\n" + length + header + checksum + encoded(gradient())[33:]
    with pytest.raises(ValueError, match=str(MAX_IMAGE_PIXELS)):
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
            expected = (pixels / 255 - settings.mean[channel]) / settings.std[channel]
            found = patches[time, row, column, below, right, channel, frame]
            torch.testing.assert_close(found, torch.from_numpy(expected).float())


@pytest.mark.parametrize("name", ["EPS", "PDF"])
def test_formats_that_need_another_program_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"page.{name.lower()}"
    Image.new("RGB", (40, 30), "red").save(path, name)
    with pytest.raises(ValueError, match=path.name):
        open_image(path)


@pytest.mark.parametrize("name", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "TGA"])
def test_formats_of_photographs_and_scans_are_decoded(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"page.{name.lower()}"
    Image.new("RGB", (40, 30), "red").save(path, name)
    assert open_image(path).size == (40, 30)
