"""Pictures: opening them safely, choosing their size, cutting them into patches.

Follows the preprocessing of Qwen2-VL (arXiv 2409.12191, section 2.1, "naive dynamic resolution"):
any picture is scaled to multiples of 28 pixels within a pixel budget, and its patches are ordered
so that the four that the merger joins lie side by side.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .config import VisionConfig
from .media import find_image
from .pixel_settings import PixelSettings

MAX_PICTURE_PIXELS = 89_478_485  # a quarter of a gibibyte in RGB; Pillow warns above it as well
RESIZED_TOKENS = (4, 16384)  # bounds of a size that a message asks for
MAX_ASPECT_RATIO = 200  # beyond it one side would shrink to less than a patch

ImageSource = Image.Image | bytes | str | Path
Pixels = npt.NDArray[np.uint8]


def open_image(source: ImageSource) -> Image.Image:
    """Open a picture and convert it to RGB.

    Encoded pictures are turned upright as their EXIF tag says; transparent parts become white.

    Args:
        source: A Pillow image, encoded bytes, a path, a `file://` URL or a `data:` URL.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The picture cannot be decoded, is too large, or lies on the network.
    """
    if isinstance(source, Image.Image):
        _check_size(source, "image")
        return to_rgb(source)
    data, name = _read(source)
    try:
        with warnings.catch_warnings():
            # The check below is the same bound, as an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data))
        _check_size(image, name)
        return to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise ValueError(
            f"{name}: has too many pixels; allowed: {MAX_PICTURE_PIXELS}; scale it down first"
        ) from None
    except (OSError, SyntaxError, EOFError) as error:  # what Pillow's decoders raise
        unknown = isinstance(error, UnidentifiedImageError)  # it names an object, not the file
        reason = "no known kind of picture" if unknown else error
        raise ValueError(
            f"{name}: cannot be decoded as an image ({reason}); "
            "give a complete PNG, JPEG, WebP, GIF, BMP or TIFF file"
        ) from None


def _read(source: bytes | str | Path) -> tuple[bytes, str]:
    """Encoded bytes of an image, and what to call it in messages."""
    found = find_image(source)
    if isinstance(found, Path):
        return found.read_bytes(), str(found)
    return found, f"image of {len(found)} bytes"


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PICTURE_PIXELS:
        raise ValueError(
            f"{name}: {width} x {height} has too many pixels; allowed: {MAX_PICTURE_PIXELS}; "
            "scale it down first"
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB: transparency over white, 16-bit grey scaled to 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and np.asarray(image).max() > 255):
        # Pillow would clip 16-bit values at 255 instead of scaling them.
        grey = np.clip(np.asarray(image, dtype=np.int64) // 257, 0, 255)
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def smart_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: int = PixelSettings.min_pixels,
    max_pixels: int = PixelSettings.max_pixels,
) -> tuple[int, int]:
    """Height and width to scale a picture to: multiples of `factor` within the pixel budget.

    Raises:
        ValueError: A side is empty or the aspect ratio is over 200.

    >>> smart_resize(480, 640)
    (476, 644)
    """
    if min(height, width) < 1:
        raise ValueError(f"image of {width} x {height} pixels is empty; give a larger one")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(
            f"image of {width} x {height} pixels: aspect ratio "
            f"{max(height, width) / min(height, width):.0f} is over {MAX_ASPECT_RATIO}; crop it"
        )
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
    """Height and width to scale an image to.

    Args:
        image: Gives the sides.
        factor: Both sides become multiples of it.
        bounds: Least and most pixels.
        resized: Height and width to round to such multiples instead, within `RESIZED_TOKENS`.

    Raises:
        ValueError: A side is empty or the aspect ratio is over `MAX_ASPECT_RATIO`.
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


def to_patches(frames: Sequence[Pixels], vision: VisionConfig, settings: PixelSettings) -> Tensor:
    """Cut frames into normalized patches in merge order.

    Args:
        frames: uint8 `[height, width, 3]` each, all of one size, sides multiples of patch x merge
            pixels; their number a multiple of `temporal_patch_size`.
        vision: Gives patch and merge sizes.
        settings: Gives mean, deviation and the factor to [0, 1].

    Returns:
        float32 `[t * h * w, 3 * temporal_patch_size * patch_size**2]`.
    """
    patch, merge, depth = vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size
    height, width, channels = frames[0].shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    # Axes: time, frame, row, merge row, y, column, merge column, x, channel.
    cube = np.stack(frames).reshape(
        len(frames) // depth, depth, rows, merge, patch, columns, merge, patch, channels
    )
    cube = cube.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7).reshape(-1, channels, depth * patch * patch)
    # There are 256 values per channel only: a table is exact and fast. float64 first and then
    # float32 is the order of operations that the models were trained with.
    unit = (np.arange(256, dtype=np.float64) * settings.rescale_factor).astype(np.float32)
    out = np.empty(cube.shape, dtype=np.float32)
    for channel in range(channels):
        mean, std = np.float32(settings.mean[channel]), np.float32(settings.std[channel])
        out[:, channel] = ((unit - mean) / std)[cube[:, channel]]
    return torch.from_numpy(out.reshape(cube.shape[0], -1))
