"""How images are scaled and normalized, as the files of a checkpoint say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .config import VisionConfig, read_json

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3  # Pillow's number for the filter


@dataclass(frozen=True)
class PixelSettings:
    """What `preprocessor_config.json` says about pictures."""

    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    rescale_factor: float = 1 / 255

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"min_pixels {self.min_pixels} and max_pixels {self.max_pixels}: "
                "both must be positive and min_pixels not the larger; change one of them"
            )

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        vision: VisionConfig,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> PixelSettings:
        """Read the settings of a checkpoint folder; the arguments override the file.

        Raises:
            FileNotFoundError: The folder has no preprocessor configuration.
            ValueError: It asks for something other than this preprocessing.
        """
        raw = _preprocessor_config(folder)
        _check_supported(raw, vision)
        size = raw.get("size") or {}
        low = raw.get("min_pixels") or size.get("min_pixels") or size.get("shortest_edge")
        high = raw.get("max_pixels") or size.get("max_pixels") or size.get("longest_edge")
        return cls(
            min_pixels=int(min_pixels or low or cls.min_pixels),
            max_pixels=int(max_pixels or high or cls.max_pixels),
            mean=tuple(raw.get("image_mean") or CLIP_MEAN),
            std=tuple(raw.get("image_std") or CLIP_STD),
            rescale_factor=float(raw.get("rescale_factor") or cls.rescale_factor),
        )


def _preprocessor_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "preprocessor_config.json"
    if not path.is_file() and (folder / "processor_config.json").is_file():
        nested = read_json(folder / "processor_config.json").get("image_processor")
        if isinstance(nested, Mapping):
            return nested
    return read_json(path)


def _check_supported(raw: Mapping[str, Any], vision: VisionConfig) -> None:
    wanted = {
        "patch_size": vision.patch_size,
        "temporal_patch_size": vision.temporal_patch_size,
        "merge_size": vision.spatial_merge_size,
        "resample": BICUBIC,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
    }
    for key, value in wanted.items():
        if raw.get(key, value) != value:
            raise ValueError(
                f"preprocessor_config.json: {key} {raw[key]!r} is not supported; "
                f"this model needs {value!r}"
            )
