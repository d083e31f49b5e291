"""Images of a benchmark: encoded bytes on disk, decoded on use.

A benchmark file may exceed memory, most of it images. Reading it moves each distinct image into an
unnamed temporary file, and rows hold handles. Decoded images are cached within `DECODED_BYTES` for
the whole process, because an evaluation decodes each image several times: check, comparison with
the calibration images, thumbnail, model input.

There are two ways of decoding, each named in the fingerprint of a task:

- `as-displayed`: upright by the EXIF orientation, transparent parts over white, 16-bit grey scaled
  to 8 bits. `generate` and calibration decode like this.
- `vlmevalkit`: Pillow's conversion to RGB and nothing else, as for the published scores: no
  rotation, no background, 16-bit grey clipped.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from PIL import Image, UnidentifiedImageError

from ....model.processing.images import (
    MAX_IMAGE_PIXELS,
    ORIENTATION,
    check_sides,
    open_header,
    open_image,
    upright_size,
)
from ...bounded_cache import BoundedCache

Decoding = Literal["as-displayed", "vlmevalkit"]
AS_DISPLAYED: Decoding = "as-displayed"
VLMEVALKIT: Decoding = "vlmevalkit"

DECODED_BYTES = 256 << 20
"""Budget for the decoded images of the process, 3 bytes per pixel."""

_PLAIN_MODES = ("RGB", "L", "P", "1")  # all decoders convert these to the same RGB

decoded_images: BoundedCache[tuple[str, Decoding], Image.Image] = BoundedCache(DECODED_BYTES)
"""Decoded images by digest and way of decoding; `StoredImage.open` returns copies of them."""


@dataclass(frozen=True)
class StoredImage:
    """Handle on an encoded image; equal if both the bytes and the way of decoding are."""

    digest: str
    """sha256 of the encoded bytes."""
    _read: Callable[[], bytes] = field(repr=False, compare=False)
    decoding: Decoding = field(default=AS_DISPLAYED, repr=False)

    @classmethod
    def of(cls, data: bytes, decoding: Decoding = AS_DISPLAYED) -> StoredImage:
        """Return a handle on bytes in memory."""
        return cls(hashlib.sha256(data).hexdigest(), lambda: data, decoding)

    def read(self) -> bytes:
        """Return the encoded bytes."""
        return self._read()

    def open(self) -> Image.Image:
        """Return the image decoded to RGB, see `decode_image`; the caller may modify it.

        Raises:
            ValueError: the image does not decode, or models cannot be shown its size.
        """
        # Not keyed by the handle, which would keep the temporary file open.
        key = self.digest, self.decoding
        image = decoded_images.get(key)
        if image is None:
            image = decode_image(self.read(), self.decoding)
            decoded_images.add(key, image, 3 * image.width * image.height)
        return image.copy()

    def variants(self) -> tuple[StoredImage, ...]:
        """Return this image and, where its pixels differ, the image that calibration decodes."""
        if self.decoding == AS_DISPLAYED or is_plain(_read_header(self.read())):
            return (self,)
        return self, replace(self, decoding=AS_DISPLAYED)

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels of the decoded image, from the header alone.

        Raises:
            ValueError: the bytes are not an image.
        """
        header = _read_header(self.read())
        return header.size if self.decoding == VLMEVALKIT else upright_size(header)


class ImageStore:
    """Stores each distinct image once, in a temporary file that lives as long as its handles.

    Args:
        decoding: way of decoding of its images.
    """

    def __init__(self, decoding: Decoding) -> None:
        self._file = tempfile.TemporaryFile(prefix="vlpress-images-")
        self._images: dict[str, StoredImage] = {}
        self._decoding = decoding

    def add(self, data: bytes) -> StoredImage:
        """Append an encoded image to the file unless it holds these bytes; return its handle."""
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self._images:
            offset, size, file = self._file.seek(0, os.SEEK_END), len(data), self._file
            file.write(data)
            file.flush()

            # pread, not seek and read: threads may read images concurrently.
            def read() -> bytes:
                return os.pread(file.fileno(), size, offset)

            self._images[digest] = StoredImage(digest, read, self._decoding)
        return self._images[digest]


def decode_image(data: bytes, decoding: Decoding) -> Image.Image:
    """Decode one image to RGB.

    Args:
        data: the encoded image.
        decoding: way of decoding, see the module.

    Raises:
        ValueError: the image does not decode, is empty, has more than `MAX_IMAGE_PIXELS` pixels,
            or is too elongated for the model.
    """
    header = _read_header(data)
    check_sides(*header.size, "its image")
    try:
        return open_image(data) if decoding == AS_DISPLAYED else header.convert("RGB")
    except Exception as error:  # Pillow's decoders raise a dozen unrelated types
        raise _describe_failure(error) from None


def is_plain(header: Image.Image) -> bool:
    """Whether all decoders make the same pixels of an image, given its header.

    They differ in transparency, EXIF orientation, more than 8 bits per channel, colour spaces
    other than RGB and grey, and several frames.
    """
    return (
        header.mode in _PLAIN_MODES
        and not _is_deep(header)
        and "transparency" not in header.info
        and getattr(header, "n_frames", 1) == 1
        and header.getexif().get(ORIENTATION, 1) == 1
    )


def _is_deep(header: Image.Image) -> bool:
    """Whether Pillow reads 8 of 16 bits: it has no mode for PNG colours of 16 bits."""
    return any(";16" in str(tile.args) for tile in getattr(header, "tile", ()))


def _read_header(data: bytes) -> Image.Image:
    """Open an encoded image without decoding its pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            return open_header(data)
    except Image.DecompressionBombError:
        raise ValueError(
            f"its image is over the limit of {MAX_IMAGE_PIXELS} pixels; scale it down"
        ) from None
    except Exception as error:
        raise _describe_failure(error) from None


def _describe_failure(error: Exception) -> ValueError:
    unknown = isinstance(error, UnidentifiedImageError)  # its text names a Python object
    reason = "no known image format" if unknown else " ".join(str(error).split())[:120]
    return ValueError(f"its image does not decode ({reason or type(error).__name__})")
