"""Keys of a record that hold images, videos or sounds but are not the ones that are read.

Such a record would be calibrated on without what it shows, so it is refused. A key is told by its
name, or by a value that can be nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from PIL import Image

READ = ("image", "images", "video", "videos")
"""The keys that are read."""

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
_DEPTH = 3  # of lists in lists


def refuse_media_keys(record: Mapping[Any, Any], known: Iterable[str]) -> None:
    """Refuse a record that holds media under a key that is not read.

    Args:
        record: one row.
        known: keys that are read.

    Raises:
        ValueError: it does; the message names the key.
    """
    known = frozenset(known)
    for key, value in record.items():
        if key not in known and _holds_media(str(key), value):
            raise ValueError(
                f"key {str(key)!r:.60} holds media but is not read; read are {', '.join(READ)}; "
                "rename it, or leave it out"
            )


def _holds_media(key: str, value: Any) -> bool:
    if _is_empty(value):
        return False
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    return _NAME.fullmatch(plain) is not None or _is_media(value, _DEPTH)


def _is_empty(value: Any) -> bool:
    """Whether there is nothing that could be media: null, a number, or only such in a list."""
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
    if isinstance(value, Mapping):  # as `datasets` writes an image
        return value.keys() <= {"bytes", "path"} or any(
            _is_media(item, depth - 1) for item in value.values() if depth
        )
    if isinstance(value, list | tuple):
        return depth > 0 and any(_is_media(item, depth - 1) for item in value)
    return False


def _names_media(text: str) -> bool:
    """Whether a text is a `data:` URL, or a path or URL of a media file and nothing else."""
    if re.match(r"data:[\w.+-]*/?[\w.+-]*(;[\w=.+-]+)*,", text, re.IGNORECASE):
        return True
    if len(text) > _LONGEST or "\n" in text:
        return False
    found = list(_EXTENSION.finditer(text))
    return bool(found) and found[-1].end() == len(text)
