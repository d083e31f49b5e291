"""Pictures of a benchmark: encoded bytes on disk, opened when they are needed.

A benchmark file may be larger than memory, most of it pictures. Reading it moves each distinct
picture into one unnamed temporary file, and rows hold handles.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 1 << 27  # decoded size bound; the largest known benchmark picture has 35 million


@dataclass(frozen=True)
class Picture:
    """A handle on an encoded picture; equal if the bytes are."""

    digest: str  # sha256 of the encoded bytes
    _read: Callable[[], bytes] = field(repr=False, compare=False)

    @classmethod
    def of(cls, data: bytes) -> Picture:
        """A handle on bytes that stay in memory."""
        return cls(hashlib.sha256(data).hexdigest(), lambda: data)

    def read(self) -> bytes:
        """The encoded bytes."""
        return self._read()

    def open(self) -> Image.Image:
        """Decode to RGB, see `open_image`.

        Raises:
            ValueError: does not decode, or is too large.
        """
        return open_image(self.read())


class PictureStore:
    """Holds each distinct picture once, in a temporary file that goes when the last handle does."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="vlpress-pictures-")
        self._known: dict[str, Picture] = {}

    def add(self, data: bytes) -> Picture:
        """Move bytes to the file, unless it holds them already."""
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._known:
            place, size, file = self._file.seek(0, os.SEEK_END), len(data), self._file
            file.write(data)
            file.flush()
            # pread, not seek and read: several threads may look at pictures at once.
            self._known[digest] = Picture(digest, lambda: os.pread(file.fileno(), size, place))
        return self._known[digest]


def open_image(data: bytes) -> Image.Image:
    """Decode one picture to RGB (alpha dropped, no background put in), bounded in size.

    Raises:
        ValueError: does not decode, or has more than `MAX_PIXELS` pixels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(
                f"picture of {image.width} x {image.height} exceeds {MAX_PIXELS} pixels"
            )
        return image.convert("RGB")
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        EOFError,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(f"picture does not decode: {error}") from error
