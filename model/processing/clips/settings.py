"""Video settings of a checkpoint folder.

The precedence is that of transformers: `video_processor` of processor_config.json,
video_preprocessor_config.json, preprocessor_config.json.
"""

from __future__ import annotations

from pathlib import Path

from ...config import VisionConfig
from ..pixel_settings import HALF, IMAGE_FILE, PixelSettings, ProcessorSection, read_section
from .selection import MAX_FRAMES, MIN_FRAMES, Sampling
from .sizes import PerClip, PerFrame, VideoRules

VIDEO_FILE = "video_preprocessor_config.json"
CLIP_BOUNDS = (128 * 32 * 32, 768 * 32 * 32)
"""Volume of a clip without settings, in pixels: the defaults of transformers' class."""
FRAME_TOKENS = 768
MOST_FRAMES = 2**20


def default_video_rules(vision: VisionConfig, images: PixelSettings) -> VideoRules:
    """Return the rules of a model without settings of its own for videos."""
    if not vision.separate_frames:
        return PerFrame(images, depth=vision.temporal_patch_size)
    low, high = CLIP_BOUNDS
    pixels = PixelSettings(low, high, images.mean, images.std, images.rescale_factor)
    return PerClip(pixels, depth=vision.temporal_patch_size)


def read_video_rules(
    folder: Path,
    vision: VisionConfig,
    images: PixelSettings,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> VideoRules:
    """Read the video settings of a checkpoint folder.

    Files of Qwen2-VL and Qwen2.5-VL have none that qwen-vl-utils uses.

    Args:
        folder: the checkpoint folder.
        vision: sizes of the tower.
        images: settings of images.
        min_pixels: minimum area of a frame; None: the checkpoint's.
        max_pixels: maximum area of a frame; None: the checkpoint's.

    Raises:
        FileNotFoundError: the folder has no preprocessor configuration.
        ValueError: the configuration requires another preprocessing, or has invalid values.
    """
    if not vision.separate_frames:
        return default_video_rules(vision, images)
    file = VIDEO_FILE if (folder / VIDEO_FILE).is_file() else IMAGE_FILE
    section = read_section(folder, "video_processor", file)
    section.check_supported(vision)
    least, most = section.bounds(CLIP_BOUNDS)
    if least > most:
        section.refuse("size.shortest_edge", least, f"at most size.longest_edge, which is {most}")
    normalization = section.normalization(vision.in_channels, HALF, HALF)
    return PerClip(
        PixelSettings(min_pixels=least, max_pixels=most, **normalization),
        sampling=_sampling(section),
        frame_tokens=_frame_tokens(section),
        frame_min_pixels=min_pixels,
        frame_max_pixels=max_pixels,
        depth=vision.temporal_patch_size,
    )


def _sampling(section: ProcessorSection) -> Sampling:
    for key, allowed in (("num_frames", (None,)), ("do_sample_frames", (None, True))):
        if section.raw.get(key) not in allowed:
            section.refuse(key, section.raw[key], f"{allowed[-1]!r}; give nframes in the message")
    return Sampling(
        fps=section.positive("fps", 2.0, MOST_FRAMES),
        min_frames=section.count("min_frames", MIN_FRAMES, MOST_FRAMES),
        max_frames=section.count("max_frames", MAX_FRAMES, MOST_FRAMES),
        multiple=1,
    )


def _frame_tokens(section: ProcessorSection) -> int:
    capped = section.raw.get("cap_pixels_per_frame")
    if capped not in (None, True, False):
        section.refuse("cap_pixels_per_frame", capped, "true, false")
    return section.count("max_video_tokens", FRAME_TOKENS, MOST_FRAMES) if capped else 0
