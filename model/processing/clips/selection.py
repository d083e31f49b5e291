"""Selection of the frames of a video file.

There are two rules. qwen-vl-utils, the usual preprocessing of Qwen2-VL and Qwen2.5-VL, takes whole
temporal patches; transformers' processor of Qwen3-VL takes any number of frames. `VideoOptions`
change the defaults of both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..visual_options import VideoOptions

FRAME_FACTOR = 2  # frames of one temporal patch
MIN_FRAMES = 4
MAX_FRAMES = 768


@dataclass(frozen=True)
class Sampling:
    """Default number of frames of a video file; the defaults are those of qwen-vl-utils."""

    fps: float = 2.0
    min_frames: int = MIN_FRAMES
    max_frames: int = MAX_FRAMES
    multiple: int = FRAME_FACTOR  # the number of frames is one of it; 1: any number


QWEN_VL_UTILS = Sampling()


def frame_indices(
    total: int,
    rate: float,
    options: VideoOptions | None = None,
    sampling: Sampling = QWEN_VL_UTILS,
) -> list[int]:
    """Select frames, evenly spaced from the first to the last (or `video_start` to `video_end`).

    Args:
        total: number of frames of the video.
        rate: frames per second of the video.
        options: see `frame_count`; None: the defaults.
        sampling: the defaults.

    Raises:
        ValueError: the options require frames that the video does not have.

    >>> frame_indices(30, 10.0)
    [0, 6, 12, 17, 23, 29]
    """
    options = options or VideoOptions()
    first, last = frame_range(total, rate, options)
    count = frame_count(last - first + 1, rate, options, sampling)
    if sampling.multiple == 1:
        return [int(index) for index in np.linspace(first, last, count).round()]
    import torch  # not by `decoding.check_video`

    # Rounding by torch gives the same frames as qwen-vl-utils.
    return [int(index) for index in torch.linspace(first, last, count).round()]


def frame_count(
    total: int, rate: float, options: VideoOptions, sampling: Sampling = QWEN_VL_UTILS
) -> int:
    """Compute the number of frames to use.

    This is `nframes` rounded to a `multiple`, or else the duration x `fps`, a multiple from
    `min_frames` to `max_frames` and at most `total`. Without any of these options, all frames of a
    video of fewer than `min_frames` are used.

    Args:
        total: number of frames of the selected time range.
        rate: frames per second of the video.
        options: frame options.
        sampling: the values without options, and the multiple.

    Raises:
        ValueError: `nframes` is larger than the number of frames, or under the multiple.
    """
    multiple = sampling.multiple
    if options.nframes is not None:
        count = round(options.nframes / multiple) * multiple
        if not multiple <= count <= total:
            raise ValueError(
                f"nframes {options.nframes}: rounded to {count}, but there are {total} frames; "
                f"ask for {multiple} to {total}"
            )
        return count
    names = ("fps", "min_frames", "max_frames", "video_start", "video_end")
    has_options = any(getattr(options, name) is not None for name in names)
    if total < multiple or (total < sampling.min_frames and not has_options):
        return total
    low = -(-(options.min_frames or sampling.min_frames) // multiple) * multiple
    high = (options.max_frames or min(sampling.max_frames, total)) // multiple * multiple
    count = int(min(max(total / rate * (options.fps or sampling.fps), low), high, total))
    return count // multiple * multiple


def frame_range(total: int, rate: float, options: VideoOptions) -> tuple[int, int]:
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
