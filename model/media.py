"""Encoded media that records and messages name: paths, URLs, base64 text, or bytes."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REMOTE = ("http://", "https://", "ftp://", "s3://", "gs://", "hf://", "oss://")
FORMS = "a path, a file:// or data: URL, base64, or an object with bytes, path, url or base64"
_KEYS = ("bytes", "path", "url", "base64", "image", "image_url", "video")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_TO_STANDARD = str.maketrans("-_", "+/")
_SHORTEST = 16
"""Characters of base64 text at least: shorter texts are taken for paths."""


def read_image_bytes(value: object, folder: Path | None = None) -> bytes:
    """Encoded bytes of an image.

    Args:
        value: bytes; a path, relative to `folder`; a `file://` or `data:` URL; base64 text (also
            wrapped, unpadded, or in the alphabet for URLs); or a mapping that holds one of these
            under `bytes`, `path`, `url`, `base64` or `image`, other keys None.
        folder: what relative paths start from; None: the current directory.

    Raises:
        FileNotFoundError: a file that is named does not exist.
        ValueError: something else is given, or the image is on the network.
    """
    if isinstance(value, Mapping):
        value = _only_value(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Path):
        return _read_file(value, folder)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"image {_short(value)}; allowed: {FORMS}")
    if value.startswith("data:"):
        return _decode(value.partition(",")[2], "image in a data: URL")
    if value.lower().startswith(REMOTE):
        raise ValueError(
            f"image {_short(value)}: images are not fetched from the network; download it first"
        )
    if value.startswith("file:"):
        return _read_file(local_path(value), folder)
    if (found := _existing(value, folder)) is not None:
        return found.read_bytes()
    if _looks_encoded(value):
        return _decode(value, f"image {_short(value)}")
    place = f" in {folder}" if folder is not None else ""
    raise FileNotFoundError(f"image {_short(value)}: no such file{place}, and not base64")


def local_path(url: str) -> Path:
    """The path behind a `file://` URL, or the path itself.

    >>> local_path("file:///a%20b.png").as_posix()
    '/a b.png'
    """
    return Path(unquote(urlsplit(url).path) if url.startswith("file:") else url)


def _only_value(record: Mapping[str, Any]) -> Any:
    given = {key: value for key, value in record.items() if value is not None}
    named = [key for key in _KEYS if key in given]
    if not named:
        raise ValueError(f"image object with keys {', '.join(record) or 'none'}; allowed: {FORMS}")
    # `datasets` writes the path beside the bytes.
    return given[named[0]]


def _read_file(path: Path, folder: Path | None) -> bytes:
    found = _existing(str(path), folder)
    if found is None:
        raise FileNotFoundError(f"image {_short(str(path))}: no such file")
    return found.read_bytes()


def _existing(name: str, folder: Path | None) -> Path | None:
    path = (folder or Path()) / name
    try:
        return path if path.is_file() else None
    except (OSError, ValueError):  # too long for the file system, or a NUL in it
        return None


def _looks_encoded(text: str) -> bool:
    plain = "".join(text.split())
    return len(plain) >= _SHORTEST and _BASE64.fullmatch(plain) is not None


def _decode(text: str, what: str) -> bytes:
    plain = "".join(unquote(text).split() if "%" in text else text.split())
    plain = plain.rstrip("=").translate(_TO_STANDARD)
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{what}: not valid base64 ({error}); encode it again") from None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
