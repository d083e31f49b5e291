"""Decoding of video files with PyAV (the extra `video`).

One frame is decoded at a time, so that only scaled frames stay in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..images import MAX_IMAGE_PIXELS
from ..visual_options import VideoOptions
from .selection import QWEN_VL_UTILS, Sampling, frame_indices, frame_range

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """Selected frames of a video; they can be iterated once."""

    frames: Iterator[Image.Image]
    count: int  # number of frames
    fps: float  # frames per second of the selection
    times: tuple[float, ...] = ()  # of each frame in the video, in seconds


def check_video(path: str | Path) -> None:
    """Check that a file can be opened as a video; no frame is decoded.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: PyAV is not installed, or the file has no readable video stream.
    """
    with _opened(Path(path)):
        pass


def open_video(
    path: str | Path, options: VideoOptions | None = None, sampling: Sampling = QWEN_VL_UTILS
) -> Clip:
    """Select the frames of a video file; iterating over `Clip.frames` decodes them.

    Args:
        path: a file of any container and codec that FFmpeg supports.
        options: frames to select; None: the defaults.
        sampling: the defaults.

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
        first, last = frame_range(total, rate, options)
        indices = frame_indices(total, rate, options, sampling)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    fps = len(indices) / (last - first + 1) * rate
    times = tuple(index / rate for index in indices)
    return Clip(_decode(path, indices), len(indices), fps, times)


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
