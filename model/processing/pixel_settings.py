"""Scaling and normalization of images, from the files of a checkpoint.

Precedence is that of transformers: `image_processor` in processor_config.json overrides
preprocessor_config.json, and `min_pixels` and `max_pixels` override `size`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from ..config import VisionConfig, read_checkpoint_json
from .fixed_size import FixedSize

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
IMAGE_FILE = "preprocessor_config.json"
BICUBIC = 3  # Pillow's number for the filter
STEPS = {
    "resample": BICUBIC,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
}
"""Steps of all image processors."""
EDGES = ("shortest_edge", "longest_edge")  # transformers' names for the bounds, both in pixels
FIXED_PROCESSORS = r"(CLIP|Llava)ImageProcessor(Fast|Pil)?"
MAX_MIN_PIXELS = 2**26  # images are enlarged to the minimum, so a larger one exhausts memory
MAX_MAX_PIXELS = 2**40


@dataclass(frozen=True)
class PixelSettings:
    """Bounds and normalization of images.

    Args:
        min_pixels: minimum area of a scaled image.
        max_pixels: maximum area of a scaled image.
        mean: mean of each channel after rescaling.
        std: standard deviation of each channel after rescaling.
        rescale_factor: factor from 0..255 to the range of `mean` and `std`.
        fixed: steps that give every image one size, whose area both bounds are; None: images keep
            their proportions.

    Raises:
        ValueError: the bounds are not positive or in the wrong order.
    """

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    rescale_factor: float = 1 / 255
    fixed: FixedSize | None = None

    def __post_init__(self) -> None:
        if self.fixed is not None:
            self._check_fixed(self.fixed.side)
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"min_pixels {self.min_pixels} and max_pixels {self.max_pixels}: "
                "both must be positive and min_pixels not the larger; change one of them"
            )

    def _check_fixed(self, side: int) -> None:
        if (self.min_pixels, self.max_pixels) != (side**2, side**2):
            raise ValueError(
                f"min_pixels {self.min_pixels} and max_pixels {self.max_pixels}: this model reads "
                f"images of {side} x {side} pixels only; leave the bounds out"
            )

    @classmethod
    def default(cls, vision: VisionConfig) -> PixelSettings:
        """Return the settings of a model without files."""
        if side := vision.image_size:
            return cls(side**2, side**2, fixed=FixedSize(side, None if vision.squeezed else side))
        return cls()

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        vision: VisionConfig,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> PixelSettings:
        """Read the settings of a checkpoint folder; `min_pixels`, `max_pixels` override the file.

        Raises:
            FileNotFoundError: the folder has no preprocessor configuration.
            ValueError: the configuration requires another preprocessing, or has invalid values.
        """
        if vision.squeezed:  # published folders have no file for it
            default = cls.default(vision)
            return replace(
                default,
                min_pixels=default.min_pixels if min_pixels is None else min_pixels,
                max_pixels=default.max_pixels if max_pixels is None else max_pixels,
            )
        section = read_section(folder)
        if vision.image_size:
            area = vision.image_size**2
            return cls(
                area if min_pixels is None else min_pixels,
                area if max_pixels is None else max_pixels,
                **section.normalization(vision.in_channels, CLIP_MEAN, CLIP_STD),
                fixed=section.fixed_size(vision),
            )
        section.check_supported(vision)
        least, most = section.bounds()
        least = least if min_pixels is None else min_pixels
        most = most if max_pixels is None else max_pixels
        if min_pixels is None and max_pixels is None and least > most:
            section.refuse("min_pixels", least, f"at most max_pixels, which is {most}")
        return cls(
            min_pixels=least,
            max_pixels=most,
            **section.normalization(vision.in_channels, CLIP_MEAN, CLIP_STD),
        )


IMAGE_BOUNDS = (PixelSettings.min_pixels, PixelSettings.max_pixels)


def read_section(
    folder: Path, key: str = "image_processor", file: str = IMAGE_FILE
) -> ProcessorSection:
    """Read the settings of an image or video processor.

    Args:
        folder: the checkpoint folder.
        key: the section of processor_config.json that contains them.
        file: the file that contains them otherwise.

    Raises:
        FileNotFoundError: there are no settings.
        ValueError: a file is not a JSON object.
    """
    path = folder / "processor_config.json"
    nested = read_checkpoint_json(path).get(key) if path.is_file() else None
    if nested is None:
        path = folder / file
        return ProcessorSection(path, read_checkpoint_json(path))
    if not isinstance(nested, Mapping):
        _refuse(path, key, nested, "an object")
    return ProcessorSection(path, nested)


@dataclass(frozen=True)
class ProcessorSection:
    """The settings of an image processor, and the file that contains them."""

    path: Path
    raw: Mapping[str, Any]

    def refuse(self, key: str, value: object, allowed: str) -> NoReturn:
        """Raise the error about a value."""
        _refuse(self.path, key, value, allowed)

    def _require(self, **required: object) -> None:
        """Refuse settings that have another value than the model needs."""
        for key, value in required.items():
            if self.raw.get(key, value) != value:
                self.refuse(key, self.raw[key], f"{value!r}, which this model needs")

    def check_supported(self, vision: VisionConfig) -> None:
        """Refuse processing steps other than Qwen2-VL's, and patch sizes other than the model's."""
        self._require(
            patch_size=vision.patch_size,
            temporal_patch_size=vision.temporal_patch_size,
            merge_size=vision.spatial_merge_size,
            **STEPS,
        )
        kind = self.raw.get("image_processor_type")
        if kind is not None and not str(kind).startswith("Qwen2"):
            self.refuse("image_processor_type", kind, "Qwen2VLImageProcessor and its variants")
        kind = self.raw.get("video_processor_type")
        if kind is not None and not str(kind).startswith(("Qwen2", "Qwen3VL")):
            self.refuse("video_processor_type", kind, "Qwen3VLVideoProcessor and its variants")

    def fixed_size(self, vision: VisionConfig) -> FixedSize:
        """Return the steps of an image processor such as CLIP's, with its defaults."""
        self._require(**STEPS)
        kind, side = self.raw.get("image_processor_type"), vision.image_size
        if kind is not None and not re.fullmatch(FIXED_PROCESSORS, str(kind)):
            self.refuse("image_processor_type", kind, "CLIPImageProcessor or LlavaImageProcessor")
        cut = self.flag("do_center_crop", default=True)
        edge = self._edge(side)
        size = self._square("crop_size", side) if cut else edge or side
        if size != side or (edge is not None and edge < side):
            given = self.raw.get("crop_size" if cut else "size")
            self.refuse("crop_size" if cut else "size", given, f"{side}, which this model needs")
        color = None
        if self.flag("do_pad", default=False):
            mean = self.channels("image_mean", CLIP_MEAN, vision.in_channels)
            red, green, blue = (int(value * 255) for value in mean)
            color = red, green, blue
        elif not cut and edge is not None:
            self.refuse("do_center_crop", False, "true, or do_pad, or a size of height and width")
        return FixedSize(side, edge, color)

    def _edge(self, side: int) -> int | None:
        """Return the shorter side after scaling; None: both sides are scaled to `side`."""
        size = self.raw.get("size", {EDGES[0]: side})
        if isinstance(size, Mapping) and set(size) == {EDGES[0]}:
            return self._whole(f"size.{EDGES[0]}", size[EDGES[0]])
        if type(size) is int:
            return self._whole("size", size)
        if self._square("size", side) != side:
            self.refuse("size", size, f"{side}, which this model needs")
        return None

    def _square(self, key: str, default: int) -> int:
        """Return the side of a square, a number or an object of height and width."""
        value = self.raw.get(key, default)
        if isinstance(value, Mapping) and set(value) == {"height", "width"}:
            sides = {self._whole(f"{key}.{name}", value[name]) for name in value}
            if len(sides) == 1:
                return sides.pop()
        if type(value) is int:
            return self._whole(key, value)
        self.refuse(key, value, "an object of equal height and width")

    def flag(self, key: str, *, default: bool) -> bool:
        """Return a truth value."""
        value = self.raw.get(key, default)
        if type(value) is not bool:
            self.refuse(key, value, "true or false")
        return value

    def bounds(self, defaults: tuple[int, int] = IMAGE_BOUNDS) -> tuple[int, int]:
        """Return minimum and maximum area (of a video: volume) in pixels."""
        size = self.raw.get("size")
        if size is None:
            size = dict(zip(EDGES, defaults, strict=True))
        if not isinstance(size, Mapping):
            self.refuse("size", size, f"an object of {' and '.join(EDGES)}")
        size, names = dict(size), {}
        for edge, key in zip(EDGES, ("min_pixels", "max_pixels"), strict=True):
            names[edge] = f"size.{edge}"
            # Both spellings are in use; names[edge] is the one to report.
            if self.raw.get(key) is not None:
                size[edge], names[edge] = self.raw[key], key
                size.pop(key, None)
        if set(size) != set(EDGES):
            self.refuse(
                "size",
                self.raw.get("size"),
                f"{' and '.join(EDGES)}, or the keys min_pixels and max_pixels",
            )
        least, most = (self._whole(names[edge], size[edge]) for edge in EDGES)
        if least > MAX_MIN_PIXELS:
            self.refuse(names[EDGES[0]], least, f"at most {MAX_MIN_PIXELS}")
        return least, most

    def _whole(self, name: str, value: object) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if type(value) is not int or not 0 < value <= MAX_MAX_PIXELS:
            self.refuse(name, value, f"a whole number of pixels from 1 to {MAX_MAX_PIXELS}")
        return value

    def normalization(
        self, channels: int, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> dict[str, Any]:
        """Return the fields of `PixelSettings` that normalize; `mean`, `std` are defaults."""
        return {
            "mean": self.channels("image_mean", mean, channels),
            "std": self.channels("image_std", std, channels, positive=True),
            "rescale_factor": self.rescale_factor(),
        }

    def channels(
        self, key: str, default: tuple[float, ...], count: int, *, positive: bool = False
    ) -> tuple[float, ...]:
        """Return a number for each channel; a single number in the file applies to all."""
        entry = self.raw.get(key, default)
        values = list(entry) if isinstance(entry, list | tuple) else [entry] * count
        is_valid = all(_is_number(value) and (value > 0 or not positive) for value in values)
        if len(values) != count or not is_valid:
            sign = "positive " if positive else ""
            self.refuse(key, entry, f"{count} {sign}numbers")
        return tuple(float(value) for value in values)

    def rescale_factor(self) -> float:
        """Return the factor of pixel values, a positive number."""
        return self.positive("rescale_factor", PixelSettings.rescale_factor, math.inf)

    def positive(self, key: str, default: float, most: float) -> float:
        """Return a positive number of at most `most`."""
        value = self.raw.get(key, default)
        if not _is_number(value) or not 0 < value <= most:
            limit = "" if most == math.inf else f" up to {most:g}"
            self.refuse(key, value, f"a positive number{limit}")
        return float(value)

    def count(self, key: str, default: int, most: int) -> int:
        """Return a whole number from 1 to `most`."""
        value = self.raw.get(key, default)
        if type(value) is not int or not 1 <= value <= most:
            self.refuse(key, value, f"a whole number from 1 to {most}")
        return value


def _is_number(value: object) -> bool:
    if type(value) is int:
        return abs(value) < MAX_MAX_PIXELS
    return type(value) is float and math.isfinite(value)


def _refuse(path: Path, key: str, value: object, allowed: str) -> NoReturn:
    shown = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    raise ValueError(
        f"{path}: {key} is {shown}; allowed: {allowed}; "
        "correct it, or take the file from the original checkpoint"
    )
