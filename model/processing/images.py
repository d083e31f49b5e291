"""Image preprocessing: safe decoding and size selection.

Follows the preprocessing of Qwen2-VL (arXiv 2409.12191, section 2.1, "naive dynamic resolution"):
any image is scaled to multiples of 28 pixels within a pixel budget; `patches` cuts it.

All rules about decoding (formats, limits, EXIF orientation, transparency, bit depth) are in this
module. It does not import torch.
"""

from __future__ import annotations

import io
import math
import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from .media import find_image
from .pixel_settings import PixelSettings

MAX_IMAGE_PIXELS = 89_478_485  # a quarter of a gibibyte in RGB; Pillow warns above it as well
ORIENTATION = 0x0112  # EXIF tag
_SWAPPING = (5, 6, 7, 8)  # its values that swap width and height
RESIZED_TOKENS = (4, 16384)  # bounds of a size given in a message
MAX_ASPECT_RATIO = 200  # above it one side would shrink to less than a patch

FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO"),
    *("TGA", "PCX", "SGI"),
)
"""Formats that are decoded. Pillow reads more, some by running another program (EPS)."""

ImageSource = Image.Image | bytes | str | Path
Pixels = npt.NDArray[np.uint8]


def open_image(source: ImageSource) -> Image.Image:
    """Decode an image, or the first frame of an animation, to RGB.

    The EXIF orientation of encoded images is applied; that of a Pillow image is ignored.
    Transparent pixels are composited over white, see `to_rgb`.

    Args:
        source: a Pillow image, encoded bytes, a path, a `file://` or `data:` URL, or base64.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: the image cannot be decoded, is incomplete, too large or too elongated, or is
            on the network.
    """
    if isinstance(source, Image.Image):
        check_sides(*source.size)
        return to_rgb(source)
    data, name = _read(source)
    with warnings.catch_warnings():
        # Pillow warns about large images, which are checked below, and about damaged metadata, of
        # which only the orientation is read.
        warnings.simplefilter("ignore")
        try:
            header = open_header(data)
        except Image.DecompressionBombError:
            raise ValueError(
                f"{name}: has too many pixels; allowed: {MAX_IMAGE_PIXELS}; scale it down first"
            ) from None
        except Exception as error:  # Pillow's decoders raise a dozen unrelated types
            raise _undecodable(name, error) from None
        check_sides(*header.size, name)
        try:
            header.load()
            # Pillow reads deep PPM files in mode I, scaled to 16 bits: a dark one has small values.
            depth = 16 if header.format == "PPM" else None
            return to_rgb(ImageOps.exif_transpose(header), depth)
        except Exception as error:
            raise _undecodable(name, error) from None


def upright_size(header: Image.Image) -> tuple[int, int]:
    """Return width and height of an image as `open_image` decodes it, without decoding it."""
    width, height = header.size
    # Pillow's TIFF reader applies the orientation itself and already reports the new size.
    if header.format != "TIFF" and header.getexif().get(ORIENTATION) in _SWAPPING:
        return height, width
    return width, height


def open_header(data: bytes) -> Image.Image:
    """Open an encoded image of one of `FORMATS` without decoding its pixels.

    Raises:
        UnidentifiedImageError: the format is not one of them; for damaged images Pillow raises
            various other types.
    """
    Image.init()
    available = [name for name in FORMATS if name in Image.OPEN]  # not every build has all of them
    return Image.open(io.BytesIO(data), formats=available)


def _undecodable(name: str, error: Exception) -> ValueError:
    # The message of UnidentifiedImageError contains the repr of a Python object.
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "no known image format" if unknown else " ".join(str(error).split())[:120]
    return ValueError(
        f"{name}: cannot be decoded as an image ({reason or type(error).__name__}); "
        "give a complete PNG, JPEG, WebP, GIF, BMP or TIFF file"
    )


def _read(source: bytes | str | Path) -> tuple[bytes, str]:
    """Return the encoded bytes of an image, and its name for messages."""
    located = find_image(source)
    if isinstance(located, Path):
        try:
            return located.read_bytes(), str(located)
        except OSError as error:
            raise ValueError(
                f"{located}: cannot be read ({error.strerror}); check its permissions"
            ) from None
    return located, f"image of {len(located)} bytes"


def check_sides(width: int, height: int, name: str = "image") -> None:
    """Check that a model can process an image of this size.

    Args:
        width: in pixels.
        height: in pixels.
        name: names the image in the message.

    Raises:
        ValueError: a side is 0, the aspect ratio is over `MAX_ASPECT_RATIO`, or there are more
            than `MAX_IMAGE_PIXELS` pixels.
    """
    size = f"{name} of {width} x {height} pixels"
    if min(height, width) < 1:
        raise ValueError(f"{size} is empty; give a larger one")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        ratio = max(height, width) / min(height, width)
        raise ValueError(f"{size}: aspect ratio {ratio:.4g} is over {MAX_ASPECT_RATIO}; crop it")
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{size} has too many pixels; allowed: {MAX_IMAGE_PIXELS}; scale it down first"
        )


def to_rgb(image: Image.Image, depth: int | None = None) -> Image.Image:
    """Convert any mode to RGB: transparency over white, deep grey scaled to 8 bits.

    Args:
        image: an image of any mode of Pillow.
        depth: bits per grey value in an image of mode I or F; None: the smallest of 1 (mode F
            only), 8 and 16 that fits its values.

    Raises:
        ValueError: grey values are not finite, negative, or need more than 16 bits.
    """
    key = image.info.get("transparency")  # PNG: the transparent colour of an image without alpha
    if image.mode == "RGB" and key is None:
        return image
    if image.mode.startswith(("I", "F")):
        return _deep_grey(image, depth, key)
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    if image.mode == "La":
        image = image.convert("LA")
    if "A" in image.getbands() or image.mode == "RGBa" or key is not None:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def _deep_grey(image: Image.Image, depth: int | None, key: object) -> Image.Image:
    # Image.convert would clip at 255 instead of scaling.
    levels = np.asarray(image).astype(np.float64)
    low, high = levels.min(), levels.max()
    if not (low >= 0 and high <= 65535):
        raise ValueError(
            f"grey levels from {low:g} to {high:g}; allowed: 0 to 65535; save it with 8 or 16 bits"
        )
    if image.mode.startswith("I;16"):
        depth = 16
    elif depth is None:
        depth = 1 if image.mode == "F" and high <= 1 else 8 if high <= 255 else 16
    grey = np.floor(levels * {1: 255, 8: 1, 16: 1 / 257}[depth] + 1e-9).astype(np.uint8)
    if isinstance(key, int):
        grey[levels == key] = 255
    return Image.fromarray(grey).convert("RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms  # missing in some builds of Pillow

    lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, rgb, "LAB", "RGB")
    converted = ImageCms.applyTransform(image, transform)
    if converted is None:
        raise ValueError("the Lab colours cannot be converted; save it as RGB")
    return converted


def smart_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: int = PixelSettings.min_pixels,
    max_pixels: int = PixelSettings.max_pixels,
) -> tuple[int, int]:
    """Compute the size to scale an image to: multiples of `factor` within the pixel budget.

    Args:
        height: in pixels.
        width: in pixels.
        factor: side of a merged patch in pixels.
        min_pixels: minimum area after scaling.
        max_pixels: maximum area after scaling.

    Returns:
        Height and width. Sides are rounded half to even (Python's `round`), as in the original.

    Raises:
        ValueError: the image itself is out of bounds, see `check_sides`.

    >>> smart_resize(480, 640)
    (476, 644)
    """
    check_sides(width, height)
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    if new_height * new_width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif new_height * new_width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def fit_size(
    image: Image.Image,
    factor: int,
    bounds: tuple[int, int],
    resized: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Compute height and width to scale an image to, in pixels.

    Args:
        image: the image.
        factor: both sides become multiples of it.
        bounds: minimum and maximum area in pixels.
        resized: height and width to use in place of the image's, within `RESIZED_TOKENS`.

    Raises:
        ValueError: the image or `resized` is out of bounds, see `check_sides`.
    """
    if resized is None:
        return smart_resize(image.height, image.width, factor, *bounds)
    low, high = (tokens * factor**2 for tokens in RESIZED_TOKENS)
    return smart_resize(*resized, factor, low, high)


def resize(image: Image.Image, height: int, width: int) -> Pixels:
    """Scale an RGB image with the bicubic filter, uint8 `[height, width, 3]`."""
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)
