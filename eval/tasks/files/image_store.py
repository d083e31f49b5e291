"""Images of a benchmark: encoded bytes on disk, decoded when they are needed.

A benchmark file may be larger than memory, most of it images. Reading it moves each distinct
image into one unnamed temporary file, and rows hold handles.

Two ways of decoding are in use, each named in the fingerprint of a task:

- `as-displayed`: upright by the EXIF orientation, transparent parts over white, 16-bit grey scaled
  to 8 bits. `generate` and calibration decode like this.
- `vlmevalkit`: Pillow's conversion to RGB and nothing else, which published scores were taken
  with: no rotation, no background, 16-bit grey clipped.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image, UnidentifiedImageError

from ....model.processing.images import MAX_PICTURE_PIXELS, check_sides, open_header, open_image

Decoding = Literal["as-displayed", "vlmevalkit"]
AS_DISPLAYED: Decoding = "as-displayed"
VLMEVALKIT: Decoding = "vlmevalkit"

ORIENTATION = 0x0112  # EXIF tag
_SIDEWAYS = (5, 6, 7, 8)  # its values that swap width and height


@dataclass(frozen=True)
class Picture:
    """A handle on an encoded image; equal if the bytes and the way of decoding are."""

    digest: str  # sha256 of the encoded bytes
    _read: Callable[[], bytes] = field(repr=False, compare=False)
    decoding: Decoding = field(default=AS_DISPLAYED, repr=False)

    @classmethod
    def of(cls, data: bytes, decoding: Decoding = AS_DISPLAYED) -> Picture:
        """A handle on bytes that stay in memory."""
        return cls(hashlib.sha256(data).hexdigest(), lambda: data, decoding)

    def read(self) -> bytes:
        """The encoded bytes."""
        return self._read()

    def open(self) -> Image.Image:
        """Decode to RGB, see `decode`.

        Raises:
            ValueError: it does not decode, or its size is not one that models are shown.
        """
        return decode(self.read(), self.decoding)

    def size(self) -> tuple[int, int]:
        """Width and height in pixels as `open` gives them, read from the header alone.

        Raises:
            ValueError: the bytes are no image.
        """
        image = _open_header(self.read())
        width, height = image.size
        # Pillow itself turns TIFF files, and gives the size of the turned image.
        is_stored = self.decoding == VLMEVALKIT or image.format == "TIFF"
        if not is_stored and image.getexif().get(ORIENTATION) in _SIDEWAYS:
            return height, width
        return width, height


class PictureStore:
    """Holds each distinct image once, in a temporary file that goes when the last handle does.

    Args:
        decoding: how its images are decoded.
    """

    def __init__(self, decoding: Decoding) -> None:
        self._file = tempfile.TemporaryFile(prefix="vlpress-pictures-")
        self._known: dict[str, Picture] = {}
        self._decoding = decoding

    def add(self, data: bytes) -> Picture:
        """Move bytes to the file, unless it holds them already."""
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._known:
            place, size, file = self._file.seek(0, os.SEEK_END), len(data), self._file
            file.write(data)
            file.flush()

            # pread, not seek and read: several threads may look at images at once.
            def read() -> bytes:
                return os.pread(file.fileno(), size, place)

            self._known[digest] = Picture(digest, read, self._decoding)
        return self._known[digest]


def decode(data: bytes, decoding: Decoding) -> Image.Image:
    """Decode one image to RGB.

    Args:
        data: the encoded image.
        decoding: see the module.

    Raises:
        ValueError: it does not decode, is empty, has more than `MAX_PICTURE_PIXELS` pixels, or is
            too elongated for the model.
    """
    header = _open_header(data)
    check_sides(*header.size, "its image")
    try:
        return open_image(data) if decoding == AS_DISPLAYED else header.convert("RGB")
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        raise _undecodable(error) from None


def _open_header(data: bytes) -> Image.Image:
    """The image that the bytes hold, its pixels not decoded yet."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return open_header(data)
    except Image.DecompressionBombError:
        raise ValueError(
            f"its image is over the limit of {MAX_PICTURE_PIXELS} pixels; scale it down"
        ) from None
    except Exception as error:
        raise _undecodable(error) from None


def _undecodable(error: Exception) -> ValueError:
    unknown = isinstance(error, UnidentifiedImageError)  # its text is of a Python object
    reason = "no known image format" if unknown else " ".join(str(error).split())[:120]
    return ValueError(f"its image does not decode ({reason or type(error).__name__})")
