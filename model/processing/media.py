"""Encoded media that records and messages name: paths, URLs, base64 text, or bytes."""

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
FORMS = "a path, a file:// or data: URL, base64, or an object with bytes, path, url or base64"
VIDEO_FORMS = "a path or a file:// URL of a video file, or a list of frames"
_KEYS = ("bytes", "path", "url", "base64", "image", "image_url")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")
_TO_STANDARD = str.maketrans("-_", "+/")
_SHORTEST = 16
"""Characters of base64 text at least: shorter texts are taken for paths."""
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def read_image_bytes(value: object, folder: Path | None = None) -> bytes:
    """Encoded bytes of an image.

    Args:
        value: what `find_image` takes.
        folder: what relative paths start from; None: the current directory.

    Raises:
        FileNotFoundError: a file that is named does not exist.
        ValueError: something else is given, or the image is on the network.
    """
    found = find_image(value, folder)
    return found if isinstance(found, bytes) else found.read_bytes()


def find_image(value: object, folder: Path | None = None) -> bytes | Path:
    """The file that holds an image, not read yet, or the encoded bytes where it is in no file.

    Args:
        value: bytes; a path, relative to `folder`; a `file://` or `data:` URL; base64 text (also
            wrapped, unpadded, or in the alphabet for URLs); or a mapping that holds one of these
            under `bytes`, `path`, `url`, `base64` or `image`, other keys None.
        folder: what relative paths start from; a file that is not there is looked for in the
            current directory, with a warning. None: the current directory alone.

    Raises:
        FileNotFoundError: a file that is named does not exist.
        ValueError: something else is given, or the image is on the network.
    """
    if isinstance(value, Mapping):
        value = _only_value(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Path):
        return _file("image", str(value), folder)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"image {shorten(value)}; allowed: {FORMS}")
    if value[:5].lower() == "data:":
        return _decode(value.partition(",")[2], "image in a data: URL")
    _refuse_remote("image", value)
    if _is_file_url(value):
        return _file("image", value, folder)
    if (found := _existing(value, folder)) is not None:
        return found
    if _looks_encoded(value):
        return _decode(value, f"image {shorten(value)}")
    place = f" in {folder}" if folder is not None else ""
    raise FileNotFoundError(f"image {shorten(value)}: no such file{place}, and not base64")


def find_video(value: object, folder: Path | None = None) -> Path:
    """The file that holds a video.

    Args:
        value: a path, relative to `folder`; a `file://` URL; or a mapping that holds one of these
            under `path` or `url`, other keys None.
        folder: what relative paths start from; None: the current directory.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: something else is given, or the video is on the network.
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
    """The path behind a `file://` URL, or the path itself.

    >>> local_path("file:///a%20b.png").as_posix()
    '/a b.png'
    """
    return Path(unquote(_behind_scheme(url)) if _is_file_url(url) else url)


def _is_file_url(text: str) -> bool:
    return text[:5].lower() == "file:"


def _behind_scheme(url: str) -> str:
    # Not urlsplit: it takes "#" and "?" out of names, and the first folder of "file://a/b" for a
    # host, which all tools that write such URLs mean as a relative path.
    path = url[5:].removeprefix("//")
    return path.removeprefix("localhost") if path.startswith("localhost/") else path


def shorten(value: object) -> str:
    """`value` in at most 80 printable characters of one line, for messages."""
    try:
        text = _REPR.repr(value)
    except Exception:  # an object whose own repr fails
        text = f"of type {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 80 else text[:77] + "..."


def _only_value(record: Mapping[str, Any]) -> Any:
    # The resolution of OpenAI's API: "auto" leaves it to the model, others cannot be followed.
    unsaid = {"detail": "auto"}.items()
    given = {k: v for k, v in record.items() if v is not None and (k, v) not in unsaid}
    named = [key for key in _KEYS if key in given]
    # `datasets` writes the path beside the bytes.
    if not named or (len(given) > 1 and given.keys() != {"bytes", "path"}):
        raise ValueError(f"image object with keys {_names(given)}; allowed: {FORMS}")
    value = given[named[0]]
    if isinstance(value, Mapping):
        raise ValueError(f"image object with an object in {named[0]!r}; allowed: {FORMS}")
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
    found = _existing(str(local_path(name)), folder)
    if found is None and _is_file_url(name):  # written without escapes, a % in the name itself
        found = _existing(_behind_scheme(name), folder)
    if found is None:
        is_relative = folder is not None and not local_path(name).is_absolute()
        place = f" in {folder}" if is_relative else ""
        raise FileNotFoundError(f"{kind} {shorten(name)}: no such file{place}; check the path")
    return found


def _existing(name: str, folder: Path | None) -> Path | None:
    """A file by its path from `folder`, or else from the current directory."""
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
        "files that %s does not hold are taken from the current folder, as other tools write "
        "relative paths",
        folder,
    )


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
