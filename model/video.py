"""Videos: which frames are looked at, at what size, and how a file is decoded.

The rules are those that Qwen2-VL and Qwen2.5-VL are used with: two frames a second, between 4 and
768 of them, and a pixel budget for the whole clip that is shared out among the frames. Files are
decoded with PyAV (the extra `video`), one frame at a time, so that only the scaled frames are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .images import MAX_PICTURE_PIXELS

FPS = 2.0
MIN_FRAMES = 4
MAX_FRAMES = 768
FRAME_MIN_PIXELS = 128 * 28 * 28
FRAME_MAX_PIXELS = 768 * 28 * 28
# 24576 tokens of 28 x 28 pixels: a clip leaves a quarter of a 32768-token context to the text.
TOTAL_PIXELS = 24576 * 28 * 28

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """Frames of a video, to be read once, in order."""

    frames: Iterator[Image.Image]
    count: int  # how many frames there will be
    fps: float  # frames per second of this selection


def frame_indices(total: int, rate: float, fps: float, max_frames: int = MAX_FRAMES) -> list[int]:
    """Which of `total` frames, recorded at `rate` per second, to look at for `fps` per second.

    An even number from `MIN_FRAMES` to `max_frames`, spread evenly from the first to the last
    frame; a video of fewer than `MIN_FRAMES` frames gives all it has.

    >>> frame_indices(30, 10.0, 2.0)
    [0, 6, 12, 17, 23, 29]
    """
    count = int(min(max(total / rate * fps, MIN_FRAMES), max_frames, total))
    if count >= MIN_FRAMES:
        count -= count % 2
    if count < 2:
        return [0]
    return [round(step * (total - 1) / (count - 1)) for step in range(count)]


def frame_budget(count: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Least and most pixels of one frame when `count` frames share the clip's budget.

    Args:
        count: Frames of the clip.
        min_pixels: Least pixels of a picture; a frame's own bounds are usually narrower.
        max_pixels: Most pixels of a picture; a frame never gets more.
    """
    # x 2: two frames make one temporal patch and share its tokens.
    most = min(FRAME_MAX_PIXELS, TOTAL_PIXELS * 2 // count)
    most = min(max(most, int(1.05 * FRAME_MIN_PIXELS)), max_pixels)
    return min(max(FRAME_MIN_PIXELS, min_pixels), most), most


def open_video(path: str | Path, *, fps: float = FPS, max_frames: int = MAX_FRAMES) -> Clip:
    """Choose the frames of a video file; they are decoded while `Clip.frames` is read.

    Args:
        path: Any container and codec that FFmpeg reads.
        fps: Frames per second to look at.
        max_frames: Bound on their number.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: PyAV is not installed, or the file has no readable video stream.
    """
    av = _import_av()
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such video file; check the path")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise ValueError(f"{path}: has no video stream; give a video file")
            stream = container.streams.video[0]
            _check_size(path, stream.codec_context.width, stream.codec_context.height)
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            # Counting packets is cheap and right where the container's own count is missing.
            total = sum(1 for packet in container.demux(stream) if packet.size)
    except (av.error.FFmpegError, OSError) as error:
        raise _unreadable(path, error) from None
    if total < 1 or rate <= 0:
        raise ValueError(f"{path}: has no video frames; give another file")
    wanted = frame_indices(total, rate, fps, max_frames)
    return Clip(_decode(path, wanted), len(wanted), len(wanted) / total * rate)


def _decode(path: Path, wanted: Sequence[int]) -> Iterator[Image.Image]:
    av = _import_av()
    chosen = set(wanted)
    given, latest = 0, None
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            for index, frame in enumerate(container.decode(stream)):
                latest = frame
                if index in chosen:
                    _check_size(path, frame.width, frame.height)
                    given += 1
                    yield frame.to_image()
                if given == len(wanted):
                    return
    except (av.error.FFmpegError, OSError) as error:
        raise _unreadable(path, error) from None
    if latest is None:
        raise ValueError(f"{path}: no frame could be decoded; give another file")
    logger.warning(
        "%s: only %d of %d chosen frames could be decoded; the last one is repeated",
        path,
        given,
        len(wanted),
    )
    for _ in range(len(wanted) - given):
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
    if width * height > MAX_PICTURE_PIXELS:
        raise ValueError(
            f"{path}: frames of {width} x {height} have too many pixels; "
            f"allowed: {MAX_PICTURE_PIXELS}; scale the video down first"
        )


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: cannot be decoded as a video ({error}); give another file")
