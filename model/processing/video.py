"""Videos: frame selection, size of frames, decoding of files.

The defaults are those of qwen-vl-utils, the usual preprocessing of Qwen2-VL and Qwen2.5-VL: two
frames per second, 4 to 768 frames, and a pixel budget for the whole clip that its frames share.
`VideoOptions` change each of them. Files are decoded with PyAV (the extra `video`), one frame at a
time, so that only scaled frames stay in memory.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .images import MAX_IMAGE_PIXELS
from .visual_options import VideoOptions

FPS = 2.0
FRAME_FACTOR = 2  # frames of one temporal patch
MIN_FRAMES = 4
MAX_FRAMES = 768
FRAME_MIN_PIXELS = 128 * 28 * 28
FRAME_MAX_PIXELS = 768 * 28 * 28
# 24576 tokens of 28 x 28 pixels leave a quarter of a 32768-token context to the text.
TOTAL_PIXELS = 24576 * 28 * 28

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """Selected frames of a video; they can be iterated once."""

    frames: Iterator[Image.Image]
    count: int  # number of frames
    fps: float  # frames per second of the selection


def frame_indices(total: int, rate: float, options: VideoOptions | None = None) -> list[int]:
    """Select frames, evenly spaced from the first to the last (or `video_start` to `video_end`).

    Args:
        total: number of frames of the video.
        rate: frames per second of the video.
        options: see `frame_count`; None: the defaults.

    Raises:
        ValueError: the options require frames that the video does not have.

    >>> frame_indices(30, 10.0)
    [0, 6, 12, 17, 23, 29]
    """
    import torch  # not by `check_video`

    options = options or VideoOptions()
    first, last = _range(total, rate, options)
    count = frame_count(last - first + 1, rate, options)
    # Rounding by torch gives the same frames as qwen-vl-utils.
    return [int(index) for index in torch.linspace(first, last, count).round()]


def frame_count(total: int, rate: float, options: VideoOptions) -> int:
    """Compute the number of frames to use.

    This is `nframes` rounded to an even number, or else the duration x `fps`, an even number from
    `min_frames` to `max_frames` and at most `total`. Without any of these options, all frames of a
    video of fewer than `MIN_FRAMES` are used.

    Args:
        total: number of frames of the selected time range.
        rate: frames per second of the video.
        options: frame options.

    Raises:
        ValueError: `nframes` is larger than the number of frames, or under 2.
    """
    if options.nframes is not None:
        count = round(options.nframes / FRAME_FACTOR) * FRAME_FACTOR
        if not FRAME_FACTOR <= count <= total:
            raise ValueError(
                f"nframes {options.nframes}: rounded to {count}, but there are {total} frames; "
                f"ask for {FRAME_FACTOR} to {total}"
            )
        return count
    names = ("fps", "min_frames", "max_frames", "video_start", "video_end")
    has_options = any(getattr(options, name) is not None for name in names)
    if total < FRAME_FACTOR or (total < MIN_FRAMES and not has_options):
        return total
    low = -(-(options.min_frames or MIN_FRAMES) // FRAME_FACTOR) * FRAME_FACTOR
    high = (options.max_frames or min(MAX_FRAMES, total)) // FRAME_FACTOR * FRAME_FACTOR
    count = int(min(max(total / rate * (options.fps or FPS), low), high, total))
    return count // FRAME_FACTOR * FRAME_FACTOR


def _range(total: int, rate: float, options: VideoOptions) -> tuple[int, int]:
    """Return the first and the last frame from `video_start` to `video_end`."""
    start, end = options.video_start, options.video_end
    if start is None and end is None:
        return 0, total - 1
    seconds = total / rate
    first = 0 if start is None else math.ceil(min(start, seconds) * rate)
    last = total - 1 if end is None else min(math.floor(min(end, seconds) * rate), total - 1)
    if first >= last:
        raise ValueError(
            f"video_start {start} and video_end {end} leave fewer than 2 frames of a video of "
            f"{seconds:.2f} seconds; give a longer span"
        )
    return first, last


def frame_budget(
    count: int, min_pixels: int, max_pixels: int, options: VideoOptions | None = None
) -> tuple[int, int]:
    """Compute minimum and maximum area of one frame if `count` frames share the clip's budget.

    Args:
        count: number of frames of the clip.
        min_pixels: minimum area of an image; the bounds of a frame are usually narrower.
        max_pixels: maximum area of an image, and of a frame without options.
        options: their `min_pixels` and `max_pixels` replace the bounds above.
    """
    options = options or VideoOptions()
    least = options.min_pixels or FRAME_MIN_PIXELS
    # x 2: two frames make one temporal patch and share its tokens.
    shared = (options.total_pixels or TOTAL_PIXELS) * FRAME_FACTOR // count
    limit = max(min(FRAME_MAX_PIXELS, shared), int(1.05 * least))
    if options.max_pixels is not None and options.max_pixels > limit:
        logger.warning(
            "max_pixels %d of a video is over the limit of %d for each of %d frames",
            options.max_pixels,
            limit,
            count,
        )
    low, high = options.bounds(max(FRAME_MIN_PIXELS, min_pixels), max_pixels)
    most = min(limit, high)
    return min(low, most), most


def check_video(path: str | Path) -> None:
    """Check that a file can be opened as a video; no frame is decoded.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: PyAV is not installed, or the file has no readable video stream.
    """
    with _opened(Path(path)):
        pass


def open_video(path: str | Path, options: VideoOptions | None = None) -> Clip:
    """Select the frames of a video file; iterating over `Clip.frames` decodes them.

    Args:
        path: a file of any container and codec that FFmpeg supports.
        options: frames to select; None: the defaults.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: PyAV is not installed, or the file has no readable video stream.
    """
    path = Path(path)
    with _opened(path) as container:
        stream = container.streams.video[0]
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        # Counting packets is cheap, and correct even if the container has no frame count.
        total = sum(1 for packet in container.demux(stream) if packet.size)
    if total < 1 or rate <= 0:
        raise ValueError(f"{path}: has no video frames; give another file")
    options = options or VideoOptions()
    try:
        first, last = _range(total, rate, options)
        indices = frame_indices(total, rate, options)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Clip(_decode(path, indices), len(indices), len(indices) / (last - first + 1) * rate)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a container that has a video stream."""
    av = _import_av()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file; check the path")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: has no video stream; give a video file")
            codec = container.streams.video[0].codec_context
            _check_size(path, codec.width, codec.height)
            yield container
    except (av.error.FFmpegError, OSError) as error:
        raise _unreadable(path, error) from None


def _decode(path: Path, indices: Sequence[int]) -> Iterator[Image.Image]:
    """Yield the frames at ascending indices; the last decodable frame replaces missing ones."""
    selected = set(indices)
    yielded, latest = 0, None
    with _opened(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for index, frame in enumerate(container.decode(stream)):
            latest = frame
            if index in selected:
                _check_size(path, frame.width, frame.height)
                yielded += 1
                yield frame.to_image()
            if yielded == len(indices):
                return
    if latest is None:
        raise ValueError(f"{path}: no frame could be decoded; give another file")
    logger.warning(
        "%s: only %d of %d chosen frames could be decoded; the last one is repeated",
        path,
        yielded,
        len(indices),
    )
    for _ in range(len(indices) - yielded):
        yield latest.to_image()


def _import_av() -> Any:
    try:
        import av
        import av.error
    except ImportError as error:
        raise ValueError(
            f"video files need PyAV, which is not installed ({error}); "
            "run: pip install 'vlpress[video]', or give a list of frames"
        ) from None
    return av


def _check_size(path: Path, width: int, height: int) -> None:
    if width * height > MAX_IMAGE_PIXELS:
        raise ValueError(
            f"{path}: frames of {width} x {height} have too many pixels; "
            f"allowed: {MAX_IMAGE_PIXELS}; scale the video down first"
        )


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: cannot be decoded as a video ({error}); give another file")
