import base64
from typing import Any

import pytest
from PIL import Image

from vlpress.calib.samples.media_keys import refuse_media_keys

READ_KEYS = ("image", "images", "question")
DATA = "data:image/png;base64," + base64.b64encode(b"anything").decode()


@pytest.mark.parametrize(
    "key",
    [
        *("img", "imgs", "Image", "IMAGES", "picture", "pictures", "photo", "video", "videos"),
        *("audio", "audios", "frames", "image_path", "image_paths", "imagePath", "image-url"),
        *("image_1", "image7", "img_base64", "image_bytes", "pixel_values", "screenshot", "media"),
        *("input_image", "question_image", "video_url", "clip", "input_audio"),
    ],
)
def test_keys_with_media_names(key: str) -> None:
    with pytest.raises(ValueError, match=repr(key)):
        refuse_media_keys({"question": "x", key: "some text"}, READ_KEYS)


@pytest.mark.parametrize(
    "value",
    [
        DATA,
        "a/b.png",
        "D:\\photos\\a b.JPG",
        "https://example.invalid/a.jpeg?size=3",
        "clip.mp4",
        ["x", ["a.webp"]],
        {"bytes": None, "path": "a"},
        {"bytes": b"\x89PNG"},
        {"inner": {"file": "a.png"}},
        b"\x89PNG",
        Image.new("RGB", (2, 2)),
    ],
)
def test_values_that_can_only_be_media(value: Any) -> None:
    with pytest.raises(ValueError, match="'source'"):
        refuse_media_keys({"question": "x", "source": value}, READ_KEYS)
    refuse_media_keys({"question": value, "image": value}, READ_KEYS)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("source", "coco"),
        ("source", "https://example.invalid/page.html"),
        ("note", "The file a.png shows a cat, a dog and more."),
        ("note", "two lines\na.png"),
        ("image_id", 7),
        ("image_id", "000000001"),
        ("image_size", [640, 480]),
        ("num_images", 2),
        ("frames", 8),
        ("videos", None),
        ("videos", []),
        ("audio", ""),
        ("pictures", [None]),
        ("img", {"bytes": None, "path": None}),
        ("meta", {"width": 3, "name": "x"}),
        ("category", "image"),
    ],
)
def test_other_keys_are_accepted(key: str, value: Any) -> None:
    refuse_media_keys({"question": "x", key: value}, READ_KEYS)
