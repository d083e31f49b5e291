"""Options of one image or video in a message: its size, and the frames to use.

Names and meanings are those of the package qwen-vl-utils, for which data sets of these models are
written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from .images import MAX_IMAGE_PIXELS
from .media import shorten

_RATES = ("fps", "sample_fps", "video_start", "video_end")
_MAX_NUMBER = 10**9  # of frames, seconds, or frames per second


@dataclass(frozen=True)
class SizeOptions:
    """Size after scaling in pixels; None: the checkpoint's settings.

    Raises:
        ValueError: a value is out of range, or two of them contradict each other.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None  # with resized_width: the size; overrides the bounds
    resized_width: int | None = None

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels", "resized_height", "resized_width"):
            _check(name, getattr(self, name), 1, MAX_IMAGE_PIXELS, whole=True)
        low, high = self.min_pixels, self.max_pixels
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_pixels {low} is over max_pixels {high}; change one of them")
        if (self.resized_height is None) != (self.resized_width is None):
            raise ValueError("resized_height and resized_width belong together; give both")

    @property
    def resized(self) -> tuple[int, int] | None:
        """Given height and width, before they are rounded to whole patches; None: not given."""
        if self.resized_height is None or self.resized_width is None:
            return None
        return self.resized_height, self.resized_width

    def bounds(self, low: int, high: int) -> tuple[int, int]:
        """Replace the default bounds `low` and `high` by the given ones.

        If only one bound is given and the default of the other contradicts it, both are equal.
        """
        if self.min_pixels is not None:
            return self.min_pixels, self.max_pixels or max(high, self.min_pixels)
        if self.max_pixels is not None:
            return min(low, self.max_pixels), self.max_pixels
        return low, high


@dataclass(frozen=True)
class ImageOptions(SizeOptions):
    """Options of an image."""


@dataclass(frozen=True)
class VideoOptions(SizeOptions):
    """Options of a video; pixels are those of one frame.

    The model sees `nframes` frames of a file, or else `fps` per second, `min_frames` to
    `max_frames` of them, from `video_start` to `video_end` (in seconds). It sees all frames of a
    list; `fps` or `sample_fps` is then the rate at which they were sampled.
    """

    total_pixels: int | None = None  # budget of all frames; a pair of frames counts once
    fps: float | None = None
    sample_fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    video_start: float | None = None
    video_end: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check("total_pixels", self.total_pixels, 1, _MAX_NUMBER * MAX_IMAGE_PIXELS, whole=True)
        for name in ("nframes", "min_frames", "max_frames"):
            _check(name, getattr(self, name), 1, _MAX_NUMBER, whole=True)
        for name in ("fps", "sample_fps"):
            _check(name, getattr(self, name), 1 / _MAX_NUMBER, _MAX_NUMBER, whole=False)
        for name in ("video_start", "video_end"):
            _check(name, getattr(self, name), 0, _MAX_NUMBER, whole=False)
        self._refuse_together("nframes", "fps", "min_frames", "max_frames")
        if self.max_frames is not None and self.max_frames < max(self.min_frames or 2, 2):
            raise ValueError(
                f"max_frames {self.max_frames}: must be at least 2, and not under min_frames"
            )
        if None not in (self.fps, self.sample_fps) and self.fps != self.sample_fps:
            raise ValueError(f"fps {self.fps} and sample_fps {self.sample_fps} differ; keep one")

    def check_of_file(self) -> None:
        """Refuse options that do not apply to a file.

        Raises:
            ValueError: such an option is given.
        """
        self._refuse(("sample_fps",), "frames that were taken from a video", "write fps")

    def check_of_frames(self) -> None:
        """Refuse options that do not apply to a list of frames.

        Raises:
            ValueError: such an option is given.
        """
        names = ("nframes", "min_frames", "max_frames", "video_start", "video_end")
        self._refuse(names, "a video file", "all frames of a list are used")

    def _refuse(self, names: tuple[str, ...], owner: str, advice: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} {getattr(self, name)}: is an option of {owner} only; {advice}"
                )

    def _refuse_together(self, name: str, *others: str) -> None:
        for other in others:
            if getattr(self, name) is not None and getattr(self, other) is not None:
                raise ValueError(f"{name} and {other} exclude each other; keep one of them")


Options = TypeVar("Options", bound=SizeOptions)


def option_names(kind: type[SizeOptions]) -> tuple[str, ...]:
    """Return the keys of a content part that are options."""
    return tuple(field.name for field in fields(kind))


def read_options(kind: type[Options], part: Mapping[str, Any]) -> Options:
    """Read the options of a content part; null counts as absent.

    Raises:
        ValueError: a value has the wrong type or is out of range.
    """
    return kind(**{name: _number(name, part.get(name)) for name in option_names(kind)})


def _number(name: str, value: Any) -> Any:
    # Data frames with missing values store whole numbers as floats.
    is_whole = name not in _RATES and isinstance(value, float) and value.is_integer()
    return int(value) if is_whole else value


def _check(name: str, value: Any, low: float, high: int, *, whole: bool) -> None:
    if value is None:
        return
    is_number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
    if is_number and low <= value <= high:
        return
    kind = "whole number" if whole else "number"
    raise ValueError(f"{name} {shorten(value)}: must be a {kind} from {low:g} to {high}")
