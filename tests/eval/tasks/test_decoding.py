from __future__ import annotations

import base64
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_files import base64_png, write_tsv
from eval_models import small_model
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlpress.calib.samples.sample import Sample, image_digest
from vlpress.eval.answering.vision_features import FeatureCache
from vlpress.eval.report.thumbnails import shrink
from vlpress.eval.resolve import refuse_leak
from vlpress.eval.tasks import open_task
from vlpress.eval.tasks.files.image_store import (
    AS_DISPLAYED,
    VLMEVALKIT,
    Decoding,
    ImageStore,
    StoredImage,
    decode_image,
)
from vlpress.eval.tasks.task import Item
from vlpress.model.processing.images import MAX_IMAGE_PIXELS, ORIENTATION, open_image
from vlpress.model.processing.processor import Processor

Pixel = tuple[int, int, int]
RED, BLUE, WHITE = (200, 30, 10), (10, 60, 220), (255, 255, 255)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def halves(size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Red, with the left half blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (0, 0, size[0] // 2, size[1]))
    return image


def turned(form: str) -> bytes:
    """The halves as a phone stores them: on their side, with a tag that says so."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    lossless = {"lossless": True} if form == "WEBP" else {}
    stored = halves().transpose(Image.Transpose.ROTATE_90)
    return encoded(stored, form, exif=exif, **lossless)


def see_through(mode: str) -> bytes:
    """A dark grey whose transparent pixels are black underneath."""
    image = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
    image.paste((80, 80, 80, 255), (30, 0, 60, 40))
    if mode == "P":
        indexed = image.convert("RGB").quantize(4)
        return encoded(indexed, transparency=indexed.getpixel((10, 20)))
    return encoded(image.convert(mode))


def deep() -> bytes:
    """Grey of 16 bits: half of the range, and all of it."""
    values = np.full((40, 60), 128 * 257, dtype=np.uint16)
    values[:, 30:] = 255 * 257
    return encoded(Image.fromarray(values))


def close(found: Any, wanted: Pixel, tolerance: int = 8) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
def test_orientation_is_applied_unless_published_scores_were_taken_without(form: str) -> None:
    upright, stored = (StoredImage.of(turned(form), how) for how in (AS_DISPLAYED, VLMEVALKIT))
    assert upright.open().size == upright.size == (60, 40)
    assert stored.open().size == stored.size == (40, 60)
    assert close(upright.open().getpixel((10, 20)), BLUE)
    assert close(upright.open().getpixel((50, 20)), RED)


def test_tiff_is_upright_in_either_way() -> None:
    for how in (AS_DISPLAYED, VLMEVALKIT):
        shown = StoredImage.of(turned("TIFF"), how)
        assert shown.open().size == shown.size == (60, 40)
        assert close(shown.open().getpixel((10, 20)), BLUE)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white_unless_published_scores_were_taken_without(mode: str) -> None:
    data = see_through(mode)
    assert decode_image(data, AS_DISPLAYED).getpixel((10, 20)) == WHITE
    assert decode_image(data, AS_DISPLAYED).getpixel((50, 20)) == (80, 80, 80)
    assert decode_image(data, VLMEVALKIT).getpixel((10, 20)) == (0, 0, 0)


def test_deep_grey_is_scaled_unless_published_scores_were_taken_without() -> None:
    assert decode_image(deep(), AS_DISPLAYED).getpixel((10, 20)) == (128, 128, 128)
    assert decode_image(deep(), VLMEVALKIT).getpixel((10, 20)) == WHITE  # clipped


def test_other_modes_decode_to_the_same_colours() -> None:
    first = Image.new("RGB", (60, 40), BLUE)
    moving = encoded(halves(), "WEBP", save_all=True, append_images=[first], lossless=True)
    cmyk = encoded(halves().convert("CMYK"), "JPEG", quality=95)
    for data in (moving, cmyk, encoded(halves().quantize(4)), encoded(halves(), "BMP")):
        for how in (AS_DISPLAYED, VLMEVALKIT):
            image = decode_image(data, how)
            assert image.mode == "RGB" and close(image.getpixel((10, 20)), BLUE)
            assert close(image.getpixel((50, 20)), RED)


@pytest.mark.parametrize("data", [turned("JPEG"), see_through("RGBA"), deep()])
def test_own_images_are_shown_as_generate_and_calibration_show_them(
    data: bytes, processor: Processor, tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(data)
    record = {"image": "a.png", "question": "What is it?", "answer": "x"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    item = open_task(str(tmp_path / "a.jsonl")).items[0]
    [shown] = item.images
    assert shown.open().tobytes() == open_image(data).tobytes()
    assert processor.image(shown.open()).digest == processor.image(data).digest
    with Image.open(io.BytesIO(shrink(shown))) as small:
        small_pixel = small.convert("RGB").getpixel((10, 20))
    assert close(small_pixel, open_image(data).getpixel((10, 20)), 40)  # type: ignore[arg-type]


def test_published_images_keep_their_decoding(tmp_path: Path) -> None:
    cell = base64.b64encode(turned("PNG")).decode()
    row = {"index": 1, "image": cell, "question": "q", "answer": "x"}
    path = write_tsv(tmp_path / "a.tsv", [{**row, "category": "Doc-oriented VQA"}])
    [shown] = open_task(f"OCRBench={path}").items[0].images
    assert shown.open().size == (40, 60)


def test_one_cache_keeps_both_decodings_apart(processor: Processor) -> None:
    def item(how: Decoding) -> Item:
        content = [{"type": "image", "image": StoredImage.of(turned("PNG"), how)}]
        return Item("1", [{"role": "user", "content": content}], 4, {})

    features = FeatureCache(small_model(), processor)
    prompts, _ = features.prompts([item(AS_DISPLAYED), item(VLMEVALKIT), item(AS_DISPLAYED)])
    assert features.encoded == 2
    (_, height, width), turned_grid = prompts[0].visuals[0].grid, prompts[1].visuals[0].grid
    assert turned_grid == (1, width, height) and width > height


def test_blank_images_have_the_size_of_the_upright_ones(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(turned("JPEG"))
    record = {"image": "a.jpg", "question": "What is it?", "answer": "x"}
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    [blank] = open_task(str(tmp_path / "a.jsonl"), blank=True).items[0].images
    assert blank.open().size == (60, 40)
    assert blank.open().getcolors() == [(2400, (127, 127, 127))]


def test_a_leak_is_found_whichever_way_the_evaluation_decodes(tmp_path: Path) -> None:
    def sample(image: Image.Image) -> Sample:
        content = [{"type": "image", "image": image}]
        return Sample([{"role": "user", "content": content}], "x", "s")

    data = see_through("RGBA")
    row = {
        "index": 1,
        "image": base64.b64encode(data).decode(),
        "question": "q",
        "answer": "x",
    }
    path = write_tsv(tmp_path / "a.tsv", [{**row, "category": "Doc-oriented VQA"}])
    task = open_task(f"OCRBench={path}")
    shown = [decode_image(data, how) for how in (AS_DISPLAYED, VLMEVALKIT)]
    assert image_digest(shown[0]) != image_digest(shown[1])
    for image in shown:
        with pytest.raises(ValueError, match="OCRBench item 1"):
            refuse_leak([sample(image)], [task])
    refuse_leak([sample(halves())], [task])


@pytest.mark.parametrize("how", [AS_DISPLAYED, VLMEVALKIT])
@pytest.mark.parametrize(
    ("size", "is_shown"),
    [
        ((1000, 5), True),
        ((1001, 5), False),
        ((2, 401), False),
        ((2, 400), True),
        ((1, 1), True),
    ],
)
def test_the_bounds_are_those_of_the_processor(
    how: Decoding, size: tuple[int, int], is_shown: bool, processor: Processor
) -> None:
    data = encoded(Image.new("RGB", size))
    if is_shown:
        assert processor.image(decode_image(data, how)).grid[0] == 1
        return
    with pytest.raises(ValueError, match=f"{size[0]} x {size[1]} pixels: aspect ratio .* 200"):
        decode_image(data, how)
    with pytest.raises(ValueError, match="aspect ratio"):
        processor.image(data)


@cache
def black(height: int) -> bytes:
    return encoded(Image.new("1", (10_000, height)))


@pytest.mark.parametrize("how", [AS_DISPLAYED, VLMEVALKIT])
@pytest.mark.parametrize("height", [9500, 30_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(how: Decoding, height: int) -> None:
    with pytest.raises(ValueError, match=str(MAX_IMAGE_PIXELS)):
        decode_image(black(height), how)


SAMPLES = {
    "upright JPEG": encoded(halves(), "JPEG"),
    "turned JPEG": turned("JPEG"),
    "turned WEBP": turned("WEBP"),
    "turned TIFF": turned("TIFF"),
    "16 bits": deep(),
    "palette": see_through("P"),
}


@given(st.binary(max_size=80), st.sampled_from([AS_DISPLAYED, VLMEVALKIT]))
def test_bytes_that_are_no_image_are_one_line(data: bytes, how: Decoding) -> None:
    with pytest.raises(ValueError, match=r"^its image does not decode \([^\n]+\)$"):
        decode_image(data, how)


@given(
    st.sampled_from(sorted(SAMPLES)),
    st.integers(0, 10_000),
    st.binary(max_size=6),
    st.sampled_from([AS_DISPLAYED, VLMEVALKIT]),
)
def test_damaged_images_decode_or_are_one_line(
    name: str, place: int, other: bytes, how: Decoding
) -> None:
    data = SAMPLES[name]
    place %= len(data)
    damaged = data[:place] + other + data[place + len(other) :]
    try:
        image = decode_image(damaged, how)
    except ValueError as error:
        assert str(error).startswith("its image") and "\n" not in str(error)
    else:
        assert image.mode == "RGB" and image.size == StoredImage.of(damaged, how).size


def test_a_store_passes_its_decoding_to_its_images() -> None:
    data = base64.b64decode(base64_png(1))
    own, published = (ImageStore(how).add(data) for how in (AS_DISPLAYED, VLMEVALKIT))
    assert own.digest == published.digest and own != published
    assert own == StoredImage.of(data) and published.read() == data
