"""Refuse records with images, videos or audio under keys that are not read.

Such a record would be calibrated on without its media. A media key is recognized by its name, or by
a value that can only be media.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

READ = ("image", "images", "video", "videos")
"""Media keys that are read."""

_KIND = (
    "image|img|picture|pic|photo|photograph|screenshot|thumbnail|figure|visual|media|multimedia|"
    "video|vid|clip|movie|frame|gif|audio|sound|speech|wav|pixel|pixelvalue"
)
_FORM = "path|file|filename|filepath|name|url|uri|link|src|base64|b64|bytes|data|content|list"
_NAME = re.compile(rf"(input|query|question|user)?({_KIND})s?({_FORM})?s?\d*")
_EXTENSION = re.compile(
    r"\.(jpe?g|jfif|png|gif|bmp|webp|tiff?|avif|heic|heif|mp4|mkv|avi|mov|webm|m4v|mpe?g|flv|wmv|"
    r"wav|mp3|flac|ogg|m4a)(\?\S*)?",
    re.IGNORECASE,
)
_LONGEST = 1024  # characters of a path or URL; longer texts are prose
_DEPTH = 3  # maximum nesting of lists


def refuse_media_keys(record: Mapping[Any, Any], read_keys: Iterable[str]) -> None:
    """Refuse a record that holds media under a key that is not read.

    Args:
        record: one record.
        read_keys: keys that are read.

    Raises:
        ValueError: the record has such a key; the message names it.
    """
    read_keys = frozenset(read_keys)
    for key, value in record.items():
        if key not in read_keys and _holds_media(str(key), value):
            raise ValueError(
                f"key {str(key)!r:.60} holds media but is not read; read are {', '.join(READ)}; "
                "rename it, or remove it"
            )


def _holds_media(key: str, value: Any) -> bool:
    if _is_empty(value):
        return False
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    return _NAME.fullmatch(plain) is not None or _is_media(value, _DEPTH)


def _is_empty(value: Any) -> bool:
    """Whether a value cannot be media: null, a number, or a container of such values."""
    if value is None or isinstance(value, bool | int | float):
        return True
    if isinstance(value, str | bytes | bytearray):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    return isinstance(value, list | tuple) and all(map(_is_empty, value))


def _is_media(value: Any, depth: int) -> bool:
    if isinstance(value, bytes | bytearray | memoryview | Image.Image):
        return True
    if isinstance(value, str):
        return _names_media(value.strip())
    if isinstance(value, Mapping):  # `datasets` stores an image like this
        return value.keys() <= {"bytes", "path"} or any(
            _is_media(item, depth - 1) for item in value.values() if depth
        )
    if isinstance(value, list | tuple):
        return depth > 0 and any(_is_media(item, depth - 1) for item in value)
    return False


def _names_media(text: str) -> bool:
    """Whether a text is a `data:` URL, or only a path or URL of a media file."""
    if re.match(r"data:[\w.+-]*/?[\w.+-]*(;[\w=.+-]+)*,", text, re.IGNORECASE):
        return True
    if len(text) > _LONGEST or "\n" in text:
        return False
    matches = list(_EXTENSION.finditer(text))
    return bool(matches) and matches[-1].end() == len(text)
