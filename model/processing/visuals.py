"""Images and videos as a model's inputs: decoded, scaled, cut into patches."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from ..config import VisionConfig
from .chat import VisualSource
from .clips.decoding import Clip, open_video
from .clips.selection import MAX_FRAMES
from .clips.sizes import FrameSize, VideoRules
from .clips.timestamps import patch_times
from .fixed_size import FixedSize
from .images import ImageSource, check_sides, fit_size, open_image, resize, smart_resize
from .inputs import Visual
from .media import find_video
from .patches import to_patches
from .pixel_settings import PixelSettings
from .visual_options import ImageOptions, VideoOptions

logger = logging.getLogger(__name__)


class VisualReader:
    """Reader of images and videos.

    Args:
        vision: sizes of the tower.
        settings: scaling and normalization of images.
        videos: preprocessing of videos; None: the model reads none.
    """

    def __init__(
        self, vision: VisionConfig, settings: PixelSettings, videos: VideoRules | None
    ) -> None:
        self.vision, self.settings, self.videos = vision, settings, videos

    def read(self, source: VisualSource) -> Visual:
        """Read an image or video of a message; for errors see `image` and `video`."""
        if isinstance(source.options, ImageOptions):
            return self.image(source.data, options=source.options)
        return self.video(source.data, source.options)

    def image(
        self,
        image: ImageSource,
        area: tuple[int, int] | None = None,
        options: ImageOptions | None = None,
    ) -> Visual:
        """Scale an image and cut it into patches.

        Args:
            image: a Pillow image, encoded bytes, a path, a `file://` or `data:` URL, or base64.
            area: minimum and maximum area after scaling in pixels; None: the settings'.
            options: bounds or a size given in a message; they override `area`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the image cannot be decoded, is too large or too elongated; or a size is
                given and the model has one for all images.
        """
        options, clip = options or ImageOptions(), Clip(iter(()), 1, 0.0)
        if self.settings.fixed is not None:
            self._refuse_size(self.settings.fixed, area, options)
            size = FrameSize(*self.settings.fixed.shape, self.settings.fixed.fields)
            return self._visual("image", clip, open_image(image), size, self.settings)
        bounds = options.bounds(*(area or (self.settings.min_pixels, self.settings.max_pixels)))
        opened, resized = open_image(image), options.resized
        height, width = fit_size(opened, self.vision.pixel_factor, bounds, resized)
        size = FrameSize(height, width, bounds if resized is None else ("resized", *resized))
        return self._visual("image", clip, opened, size, self.settings)

    def image_size(self, width: int, height: int, area: tuple[int, int]) -> tuple[int, int]:
        """Compute height and width of the result of `image`; arguments in pixels.

        Raises:
            ValueError: see `image`.
        """
        if self.settings.fixed is not None:
            check_sides(width, height)
            self._refuse_size(self.settings.fixed, area, ImageOptions())
            return self.settings.fixed.shape
        return smart_resize(height, width, self.vision.pixel_factor, *area)

    def _refuse_size(
        self, fixed: FixedSize, area: tuple[int, int] | None, options: ImageOptions
    ) -> None:
        own = (self.settings.min_pixels, self.settings.max_pixels)
        if options != ImageOptions() or area not in (None, own):
            raise ValueError(
                f"a size is given for an image, but this model reads images of {fixed.side} x "
                f"{fixed.side} pixels only; leave it out"
            )

    def video(
        self, source: str | Path | Sequence[ImageSource], options: VideoOptions | None = None
    ) -> Visual:
        """Select the frames of a video, scale them and cut them into patches.

        Args:
            source: a video file, or a list of frames (as in `image`), all of which are used.
            options: frames of a file to use, and the size; None: the defaults.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the video cannot be decoded, a list is empty, too long or has frames of
                different sizes, the options do not apply, or the model reads no videos.
        """
        if self.videos is None:
            raise ValueError(
                "a video is given, but this model reads images only; give some of its frames as "
                "images"
            )
        options = options or VideoOptions()
        if isinstance(source, str | Path):
            options.check_of_file()
            clip = open_video(find_video(source), options, self.videos.sampling)
        else:
            options.check_of_frames()
            if not 1 <= len(source) <= MAX_FRAMES:
                raise ValueError(
                    f"video of {len(source)} frames; allowed: 1 to {MAX_FRAMES}; "
                    "take fewer per second"
                )
            clip = self._listed(source, options, self.videos.default_fps)
        first = next(clip.frames)
        size = self.videos.frame_size(first, clip.count, self.vision.pixel_factor, options)
        return self._visual("video", clip, first, size, self.videos.pixels)

    def _listed(
        self, source: Sequence[ImageSource], options: VideoOptions, default_fps: float
    ) -> Clip:
        """Return the clip of a list of frames."""
        fps = options.sample_fps or options.fps
        if fps is None:
            fps = default_fps
            if self.vision.separate_frames:
                _warn_of_rate(fps)
        times = tuple(index / fps for index in range(len(source)))
        return Clip((open_image(frame) for frame in source), len(source), fps, times)

    def _padded(self, frames: int) -> int:
        """Round up to whole temporal patches."""
        depth = self.vision.temporal_patch_size
        return -(-frames // depth) * depth

    def _visual(
        self,
        kind: Literal["image", "video"],
        clip: Clip,
        first: Image.Image,
        size: FrameSize,
        settings: PixelSettings,
    ) -> Visual:
        """Scale the first and the remaining frames of a clip, and cut them into patches."""
        vision = self.vision
        depth = vision.temporal_patch_size
        padded = self._padded(clip.count)
        digest = hashlib.sha256(self._digest_head(kind, first.size, size.budget, settings))
        frames = []
        for frame in _same_size(chain([first], clip.frames), first.size):
            digest.update(frame.tobytes())
            scaled = settings.fixed.apply(frame) if settings.fixed else None
            frames.append(resize(frame, size.height, size.width) if scaled is None else scaled)
        frames += [frames[-1]] * (padded - len(frames))
        return Visual(
            kind=kind,
            patches=to_patches(frames, vision, settings),
            grid=(
                padded // depth,
                size.height // vision.patch_size,
                size.width // vision.patch_size,
            ),
            seconds_per_grid=depth / clip.fps if kind == "video" else 0.0,
            digest=digest.hexdigest(),
            times=patch_times(clip.times, depth) if kind == "video" else (),
        )

    def _digest_head(
        self,
        kind: str,
        size: tuple[int, int],
        budget: Sequence[object],
        settings: PixelSettings,
    ) -> bytes:
        # All inputs of the patches other than the pixels.
        vision = self.vision
        fields: list[Any] = [
            kind,
            *size,
            *budget,
            *settings.mean,
            *settings.std,
            settings.rescale_factor,
        ]
        fields += [vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size]
        return json.dumps(fields).encode()


@cache
def _warn_of_rate(fps: float) -> None:
    logger.warning(
        "a list of frames without its rate is read as %g frames per second, from which the times "
        "in the prompt follow; give fps with the frames",
        fps,
    )


def _same_size(frames: Iterable[Image.Image], size: tuple[int, int]) -> Iterator[Image.Image]:
    for index, frame in enumerate(frames):
        if frame.size != size:
            raise ValueError(
                f"frame {index} of the video is {frame.size[0]} x {frame.size[1]}, the first is "
                f"{size[0]} x {size[1]}; all must be of one size"
            )
        yield frame
