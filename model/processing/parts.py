"""Parts of a message's content: texts, images and videos in the forms of several libraries."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from .media import find_image, find_video, shorten
from .visual_options import ImageOptions, SizeOptions, VideoOptions, option_names, read_options

Part = dict[str, Any]
NOT_LISTS = (str, bytes, bytearray, memoryview)
"""Sequence types that are a single value."""
KINDS = {"text": "text", "image": "image", "image_url": "image", "video": "video"}
KINDS["video_url"] = "video"
INDEX = "index"
"""Key of an image or video without data: index of its entry in the column, see `columns.py`."""
PLACEHOLDERS = (
    *("<|image_pad|>", "<|video_pad|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>"),
)
"""Tokens written by the chat template and the processor; an error in a text."""

_PLACEHOLDER = re.compile("|".join(map(re.escape, PLACEHOLDERS)))
_DATA_KEYS = {
    "image": ("image", "image_url", "path", "url", "base64", "bytes"),
    "video": ("video", "video_url", "path", "url"),
}
_OPTIONS: dict[str, type[SizeOptions]] = {"image": ImageOptions, "video": VideoOptions}


def read_part(part: object, folder: Path | None) -> Part:
    """Convert a part to the form of `chat.py`; it has no data if the given part has none.

    Args:
        part: an object; keys with the value null count as absent.
        folder: base of relative paths; None: the current directory.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the part has another form.
    """
    if not isinstance(part, Mapping):
        raise ValueError(f"content part {shorten(part)}: must be an object with a type")
    given = {key: value for key, value in part.items() if value is not None}
    kind = _kind(given)
    given.pop("type", None)
    if kind == "text":
        _refuse_unknown(given, kind, ("text",))
        return read_text(given.get("text"))
    options = option_names(_OPTIONS[kind])
    _refuse_unknown(given, kind, (*_DATA_KEYS[kind], *options, INDEX))
    values = [given[key] for key in _DATA_KEYS[kind] if key in given]
    if len(values) > 1:
        names = ", ".join(key for key in _DATA_KEYS[kind] if key in given)
        raise ValueError(f"{kind} part with {names}; keep one of them")
    parsed = read_options(_OPTIONS[kind], given)
    result: Part = {"type": kind}
    result |= {name: getattr(parsed, name) for name in options if getattr(parsed, name) is not None}
    if INDEX in given:
        result[INDEX] = given[INDEX]
    return add_data(result, values[0], folder) if values else result


def add_data(part: Part, value: object, folder: Path | None) -> Part:
    """Add the data to the part of an image or video.

    Args:
        part: result of `read_part`, without data.
        value: an image or video, see `find_image` and `find_video`, or a list of frames.
        folder: base of relative paths; None: the current directory.

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: the data have another form, or an option does not apply to them.
    """
    kind = part["type"]
    if kind == "image":
        return {**part, "image": _image(value, folder)}
    options = read_options(VideoOptions, part)
    if isinstance(value, Sequence) and not isinstance(value, NOT_LISTS):
        if not value:
            raise ValueError("video of 0 frames; give at least one")
        options.check_of_frames()
        return {**part, "video": [_image(frame, folder) for frame in value]}
    options.check_of_file()
    return {**part, "video": find_video(value, folder)}


def has_placeholder(text: str) -> bool:
    """Return whether a text contains a placeholder token of images or videos."""
    return _PLACEHOLDER.search(text) is not None


def read_text(text: object) -> Part:
    """Return the part of a text.

    Raises:
        ValueError: it is not a string, contains a placeholder token, or is not valid Unicode.
    """
    if not isinstance(text, str):
        raise ValueError(f"text {shorten(text)}: must be a string")
    if match := _PLACEHOLDER.search(text):
        raise ValueError(
            f"text with the token {match.group()}: it represents an image or video; remove it "
            "and give the image or video as a part"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = shorten(text[error.start])
        raise ValueError(f"text with {half}: half of a surrogate pair; encode it again") from None
    return {"type": "text", "text": text}


def _image(value: object, folder: Path | None) -> Image.Image | bytes | Path:
    return value if isinstance(value, Image.Image) else find_image(value, folder)


def _kind(given: Mapping[str, Any]) -> str:
    if "type" in given:
        kind = given["type"]
        if not isinstance(kind, str) or kind not in KINDS:
            allowed = ", ".join(KINDS)
            raise ValueError(f"content part of type {shorten(kind)}; allowed: {allowed}")
        return KINDS[kind]
    kinds = {KINDS[key] for key in given if key in KINDS}
    if len(kinds) != 1:
        raise ValueError(f"content part {shorten(dict(given))}: needs a type; {', '.join(KINDS)}")
    return kinds.pop()


def _refuse_unknown(given: Mapping[str, Any], kind: str, allowed: Sequence[str]) -> None:
    for key in given:
        if key not in allowed:
            raise ValueError(
                f"{kind} part with the key {shorten(key)}: not supported; "
                f"allowed: {', '.join(allowed)}"
            )
