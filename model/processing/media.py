"""Encoded images and videos given as paths, URLs, base64 text or bytes."""

from __future__ import annotations

import base64
import binascii
import logging
import re
import reprlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

logger = logging.getLogger(__name__)

_REMOTE = re.compile(r"(https?|ftp|s3|gs|hf|oss):/", re.IGNORECASE)
IMAGE_FORMS = "a path, a file:// or data: URL, base64, or an object with bytes, path, url or base64"
VIDEO_FORMS = "a path or a file:// URL of a video file, or a list of frames"
_KEYS = ("bytes", "path", "url", "base64", "image", "image_url")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_MIN_BASE64 = 16
"""Characters of the shortest text that is read as base64; a shorter one is a path."""
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def read_image_bytes(value: object, folder: Path | None = None) -> bytes:
    """Read the encoded bytes of an image.

    Args:
        value: see `find_image`.
        folder: base of relative paths; None: the current directory.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the value has another form, or the image is on the network.
    """
    source = find_image(value, folder)
    return source if isinstance(source, bytes) else source.read_bytes()


def find_image(value: object, folder: Path | None = None) -> bytes | Path:
    """Locate an image: the path of its file, which is not read, or its encoded bytes.

    Args:
        value: bytes; a path, relative to `folder`; a `file://` or `data:` URL; base64 text (also
            wrapped, unpadded or URL-safe); or a mapping with one of these under `bytes`, `path`,
            `url`, `base64` or `image` and None under its other keys.
        folder: base of relative paths; a file that is missing there is searched in the current
            directory, with a warning. None: the current directory only.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the value has another form, or the image is on the network.
    """
    if isinstance(value, Mapping):
        value = _only_value(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Path):
        return _file("image", str(value), folder)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"image {shorten(value)}; allowed: {IMAGE_FORMS}")
    if value[:5].lower() == "data:":
        return decode_base64(value.partition(",")[2], "image in a data: URL")
    _refuse_remote("image", value)
    if _is_file_url(value):
        return _file("image", value, folder)
    if (path := _existing(value, folder)) is not None:
        return path
    if _looks_encoded(value):
        return decode_base64(value, f"image {shorten(value)}")
    base = f" in {folder}" if folder is not None else ""
    raise FileNotFoundError(f"image {shorten(value)}: no such file{base}, and not base64")


def find_video(value: object, folder: Path | None = None) -> Path:
    """Locate the file of a video.

    Args:
        value: a path, relative to `folder`; a `file://` URL; or a mapping with one of these under
            `path` or `url` and None under its other keys.
        folder: base of relative paths, as in `find_image`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the value has another form, or the video is on the network.
    """
    if isinstance(value, Mapping):
        given = {key: item for key, item in value.items() if item is not None}
        if len(given) != 1 or not given.keys() <= {"path", "url"}:
            raise ValueError(f"video object with keys {_names(given)}; allowed: {VIDEO_FORMS}")
        (value,) = given.values()
    is_text = isinstance(value, str) and value.strip() and value[:5].lower() != "data:"
    if not is_text and not isinstance(value, Path):
        raise ValueError(f"video {shorten(value)}; allowed: {VIDEO_FORMS}")
    text = str(value)
    _refuse_remote("video", text)
    return _file("video", text, folder)


def local_path(url: str) -> Path:
    """Return the path of a `file://` URL; a plain path is returned unchanged.

    >>> local_path("file:///a%20b.png").as_posix()
    '/a b.png'
    """
    return Path(unquote(_without_scheme(url)) if _is_file_url(url) else url)


def _is_file_url(text: str) -> bool:
    return text[:5].lower() == "file:"


def _without_scheme(url: str) -> str:
    # Not urlsplit: it removes "#" and "?" from names, and reads the first folder of "file://a/b" as
    # a host, although all tools that write such URLs mean a relative path.
    path = url[5:].removeprefix("//")
    return path.removeprefix("localhost") if path.startswith("localhost/") else path


def shorten(value: object) -> str:
    """Format a value for a message: one line of at most 80 printable characters."""
    try:
        text = _REPR.repr(value)
    except Exception:  # an object whose own repr fails
        text = f"of type {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


def _only_value(record: Mapping[str, Any]) -> Any:
    # The resolution option of OpenAI's API: "auto" leaves it to the model, so it can be ignored;
    # other values would be silently wrong.
    ignored = {"detail": "auto"}.items()
    given = {k: v for k, v in record.items() if v is not None and (k, v) not in ignored}
    data_keys = [key for key in _KEYS if key in given]
    # `datasets` stores the path in addition to the bytes.
    if not data_keys or (len(given) > 1 and given.keys() != {"bytes", "path"}):
        raise ValueError(f"image object with keys {_names(given)}; allowed: {IMAGE_FORMS}")
    value = given[data_keys[0]]
    if isinstance(value, Mapping):
        raise ValueError(f"image object with an object in {data_keys[0]!r}; allowed: {IMAGE_FORMS}")
    return value


def _names(record: Mapping[str, Any]) -> str:
    return ", ".join(shorten(key) for key in record) or "none"


def _refuse_remote(kind: str, text: str) -> None:
    # Path turns "https://" into "https:/".
    if _REMOTE.match(text):
        raise ValueError(
            f"{kind} {shorten(text)}: nothing is fetched from the network; download it first"
        )


def _file(kind: str, name: str, folder: Path | None) -> Path:
    path = _existing(str(local_path(name)), folder)
    if path is None and _is_file_url(name):  # written without escapes, a % in the name itself
        path = _existing(_without_scheme(name), folder)
    if path is None:
        is_relative = folder is not None and not local_path(name).is_absolute()
        base = f" in {folder}" if is_relative else ""
        raise FileNotFoundError(f"{kind} {shorten(name)}: no such file{base}; check the path")
    return path


def _existing(name: str, folder: Path | None) -> Path | None:
    """Return a file's path relative to `folder`, else to the current directory, or None."""
    for start in (folder or Path(), Path()):
        try:
            if (start / name).is_file():
                break
        except (OSError, ValueError):  # too long for the file system, or a NUL in it
            return None
    else:
        return None
    if folder is not None and start != folder:
        _warn_of_current_folder(folder)
    return start / name


@cache
def _warn_of_current_folder(folder: Path) -> None:
    logger.warning(
        "files missing in %s are read from the current folder, because some tools write paths "
        "relative to it",
        folder,
    )


def _looks_encoded(text: str) -> bool:
    plain = "".join(text.split())
    return len(plain) >= _MIN_BASE64 and _BASE64.fullmatch(plain) is not None


def decode_base64(text: str, name: str) -> bytes:
    """Decode base64 in any form: wrapped, unpadded, URL-safe or percent-encoded.

    Args:
        text: the encoded data, without the prefix of a `data:` URL.
        name: names the data in the error message.

    Raises:
        ValueError: the text is not base64.
    """
    # Texts hold megabytes each: one copy as bytes, further ones only for the unusual forms.
    # split and join return the same object if there is no white space.
    plain = "".join((unquote(text) if "%" in text else text).split())
    try:
        data = plain.encode("ascii")
        if b"-" in data or b"_" in data:
            data = data.translate(_TO_STANDARD)
        length = len(data.rstrip(b"="))
        padded = length + -length % 4
        if len(data) != padded:
            data = data[:length].ljust(padded, b"=")
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: not valid base64 ({error}); encode it again") from None
