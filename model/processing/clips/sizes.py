"""Size of the frames of a video, and the rules of each preprocessing.

`PerFrame` is qwen-vl-utils, the usual preprocessing of Qwen2-VL and Qwen2.5-VL: a pixel budget for
the whole clip that its frames share, within bounds for each frame. `PerClip` is transformers'
processor of Qwen3-VL: bounds of the volume, width x height x frames. `VideoOptions` change both.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from ..images import check_sides, fit_size
from ..pixel_settings import PixelSettings
from ..visual_options import VideoOptions
from .selection import FRAME_FACTOR, QWEN_VL_UTILS, Sampling

FRAME_MIN_TOKENS = 128
FRAME_MAX_TOKENS = 768
TOTAL_TOKENS = 24576  # leaves a quarter of a 32768-token context to the text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FrameSize:
    """Height and width to scale the frames of a clip to."""

    height: int
    width: int
    budget: tuple[object, ...]  # what the size follows from, besides the frames


class VideoRules(Protocol):
    """Preprocessing of videos."""

    @property
    def sampling(self) -> Sampling:
        """Default selection of the frames of a file."""
        ...

    @property
    def pixels(self) -> PixelSettings:
        """Normalization of frames."""
        ...

    @property
    def default_fps(self) -> float:
        """Frames per second of a list of frames that is given without its rate."""
        ...

    def frame_size(
        self, frame: Image.Image, count: int, factor: int, options: VideoOptions
    ) -> FrameSize:
        """Compute the size of the frames of a clip.

        Args:
            frame: any of them; all are of one size.
            count: number of frames.
            factor: both sides become multiples of it.
            options: bounds or a size given in a message.

        Raises:
            ValueError: the frames are out of bounds, see `images.check_sides`.
        """
        ...


@dataclass(frozen=True)
class PerFrame:
    """Frames share a budget; the bounds of an image apply to each frame too."""

    pixels: PixelSettings
    depth: int = FRAME_FACTOR  # frames of a temporal patch
    sampling: Sampling = QWEN_VL_UTILS
    default_fps: float = 2.0

    def frame_size(
        self, frame: Image.Image, count: int, factor: int, options: VideoOptions
    ) -> FrameSize:
        """See `VideoRules.frame_size`."""
        padded = count + -count % self.depth
        low, high = self.pixels.min_pixels, self.pixels.max_pixels
        bounds = frame_budget(padded, low, high, options, token_pixels=factor**2)
        height, width = fit_size(frame, factor, bounds, options.resized)
        resized = options.resized
        return FrameSize(height, width, bounds if resized is None else ("resized", *resized))


@dataclass(frozen=True)
class PerClip:
    """Bounds of the volume of a clip, width x height x frames in pixels.

    `pixels` are these bounds. Options, whose pixels are those of one frame, change them by the
    number of frames.
    """

    pixels: PixelSettings
    sampling: Sampling = field(default_factory=lambda: Sampling(multiple=1))
    frame_tokens: int = 0  # maximum tokens of one frame; 0: the volume is the only bound
    frame_min_pixels: int | None = None  # bounds of a frame that the user asked for
    frame_max_pixels: int | None = None
    depth: int = FRAME_FACTOR
    default_fps: float = 24.0

    def frame_size(
        self, frame: Image.Image, count: int, factor: int, options: VideoOptions
    ) -> FrameSize:
        """See `VideoRules.frame_size`."""
        if options.resized is not None:
            height, width = fit_size(frame, factor, (1, 1), options.resized)
            return FrameSize(height, width, ("resized", *options.resized))
        count = max(count, self.depth)  # a single frame is repeated
        low, high = self._volume(count, factor, options)
        height, width = resize_clip(frame.size, count, factor, (low, high), self.depth)
        return FrameSize(height, width, ("volume", low, high, count))

    def _volume(self, count: int, factor: int, options: VideoOptions) -> tuple[int, int]:
        low, high = self.pixels.min_pixels, self.pixels.max_pixels
        if self.frame_tokens:
            share = min(self.frame_tokens * factor**2, high // count)
            high = max(share, int(1.05 * low)) * count
        if options.total_pixels is not None:
            high = options.total_pixels * self.depth  # a temporal patch counts once
        frame_low = options.min_pixels or self.frame_min_pixels
        frame_high = options.max_pixels or self.frame_max_pixels
        if frame_high is not None:
            high = min(high, frame_high * count)
        if frame_low is not None:
            low = frame_low * count
        return min(low, high), high


def resize_clip(
    size: tuple[int, int], count: int, factor: int, bounds: tuple[int, int], depth: int
) -> tuple[int, int]:
    """Compute the size of the frames of a clip within bounds of its volume.

    Args:
        size: width and height of the frames, in pixels.
        count: number of frames, at least `depth`.
        factor: both sides become multiples of it.
        bounds: minimum and maximum of height x width x frames.
        depth: the number of frames is rounded to a multiple of it, half to even.

    Returns:
        Height and width.

    Raises:
        ValueError: the frames are out of bounds, see `images.check_sides`.

    >>> resize_clip((640, 480), 8, 32, (4096, 25165824), 2)
    (480, 640)
    """
    width, height = size
    check_sides(width, height)
    if min(height, width) < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    low, high = bounds
    volume = round(count / depth) * depth * new_height * new_width
    if volume > high:
        shrink = math.sqrt(count * height * width / high)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif volume < low:
        grow = math.sqrt(low / (count * height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def frame_budget(
    count: int,
    min_pixels: int,
    max_pixels: int,
    options: VideoOptions | None = None,
    *,
    token_pixels: int = 28 * 28,
) -> tuple[int, int]:
    """Compute minimum and maximum area of one frame if `count` frames share the clip's budget.

    Args:
        count: number of frames of the clip.
        min_pixels: minimum area of an image; the bounds of a frame are usually narrower.
        max_pixels: maximum area of an image, and of a frame without options.
        options: their `min_pixels` and `max_pixels` replace the bounds above.
        token_pixels: pixels of a merged patch; the defaults of qwen-vl-utils count in it.
    """
    options = options or VideoOptions()
    frame_low, frame_high = FRAME_MIN_TOKENS * token_pixels, FRAME_MAX_TOKENS * token_pixels
    least = options.min_pixels or frame_low
    # x 2: two frames make one temporal patch and share its tokens.
    shared = (options.total_pixels or TOTAL_TOKENS * token_pixels) * FRAME_FACTOR // count
    limit = max(min(frame_high, shared), int(1.05 * least))
    if options.max_pixels is not None and options.max_pixels > limit:
        logger.warning(
            "max_pixels %d of a video is over the limit of %d for each of %d frames",
            options.max_pixels,
            limit,
            count,
        )
    low, high = options.bounds(max(frame_low, min_pixels), max_pixels)
    most = min(limit, high)
    return min(low, most), most
