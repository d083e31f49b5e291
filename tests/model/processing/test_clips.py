"""Videos of Qwen3-VL: frames, sizes and times are those of transformers' processor."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paths
import pytest
import torch
from PIL import Image
from tiny_models import make_tiny_config

from vlpress.model.config import VisionConfig
from vlpress.model.processing.clips.selection import Sampling, frame_indices
from vlpress.model.processing.clips.settings import (
    CLIP_BOUNDS,
    default_video_rules,
    read_video_rules,
)
from vlpress.model.processing.clips.sizes import PerClip, resize_clip
from vlpress.model.processing.clips.timestamps import patch_times, write_times
from vlpress.model.processing.pixel_settings import HALF, PixelSettings
from vlpress.model.processing.visual_options import VideoOptions
from vlpress.model.processing.visuals import VisualReader

GOLDEN = json.loads((paths.GOLDEN / "video_clips.json").read_text())
IMAGES = PixelSettings(mean=HALF, std=HALF)
ANY_NUMBER = Sampling(multiple=1)


@pytest.fixture
def vision() -> VisionConfig:
    return replace(make_tiny_config().vision, patch_size=16, separate_frames=True)


def test_sizes_equal_transformers() -> None:
    assert len(GOLDEN["sizes"]) > 40
    for case in GOLDEN["sizes"]:
        size, bounds = (case["width"], case["height"]), tuple(case["bounds"])
        new = resize_clip(size, case["count"], 32, bounds, 2)
        assert list(new) == case["expected_hw"], case


def test_frames_and_times_equal_transformers() -> None:
    for case in GOLDEN["frames"]:
        given = {"num_frames": "nframes", "fps": "fps"}
        options = VideoOptions(**{given[key]: value for key, value in case["options"].items()})
        indices = frame_indices(case["total"], case["rate"], options, ANY_NUMBER)
        assert indices == case["indices"], case
        times = patch_times([index / case["rate"] for index in indices], 2)
        assert [f"{time:.1f}" for time in times] == case["times"]


def test_patches_equal_transformers(vision: VisionConfig) -> None:
    expected = GOLDEN["pixels"]
    video = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    reader = VisualReader(vision, IMAGES, default_video_rules(vision, IMAGES))
    visual = reader.video([Image.fromarray(frame) for frame in video], VideoOptions(fps=2.0))
    patches = visual.patches.double()
    assert list(visual.grid) == expected["grid"] and list(patches.shape) == expected["shape"]
    torch.testing.assert_close(
        visual.patches[0, :8], torch.tensor(expected["first"]), atol=1e-6, rtol=0
    )
    weighted = (patches.sum(1) * torch.arange(len(patches))).sum().item()
    assert weighted == pytest.approx(expected["weighted"], rel=1e-4)
    assert visual.times == (0.25, 1.0)


def test_text_before_each_temporal_patch() -> None:
    text = "a<|vision_start|><|video_pad|><|vision_end|>b<|video_pad|>c"
    assert write_times(text, [(0.25, 1.25), (3.0,)]) == (
        "a<0.2 seconds><|vision_start|><|video_pad|><|vision_end|>"
        "<1.2 seconds><|vision_start|><|video_pad|><|vision_end|>"
        "b<3.0 seconds><|vision_start|><|video_pad|><|vision_end|>c"
    )
    with pytest.raises(ValueError, match=r"2 video tokens for 1 videos"):
        write_times(text, [(0.0,)])


def frame(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height))


def area(rules: PerClip, count: int, **options: Any) -> int:
    size = rules.frame_size(frame(1280, 720), count, 32, VideoOptions(**options))
    return size.height * size.width


def test_options_of_a_message_bound_the_volume() -> None:
    rules = PerClip(PixelSettings(4096, 10**7))
    assert area(rules, 8) == 704 * 1280
    assert area(rules, 8, max_pixels=100_000) <= 100_000
    assert area(rules, 8, total_pixels=400_000) <= 100_000  # of two frames each
    assert area(rules, 8, min_pixels=1_100_000, max_pixels=1_200_000) >= 1_100_000
    fixed = rules.frame_size(
        frame(90, 90), 8, 32, VideoOptions(resized_height=64, resized_width=100)
    )
    assert (fixed.height, fixed.width) == (64, 96)
    assert area(replace(rules, frame_max_pixels=65536), 4) <= 65536
    assert area(replace(rules, frame_tokens=100), 4) <= 100 * 32 * 32


def test_settings_of_a_checkpoint(tmp_path: Path, vision: VisionConfig) -> None:
    base = {"patch_size": 16, "merge_size": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    images = {**base, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    rules = read_video_rules(tmp_path, vision, IMAGES)
    assert isinstance(rules, PerClip)
    assert (rules.pixels.min_pixels, rules.pixels.max_pixels) == (65536, 16777216)
    videos = {
        **base,
        "video_processor_type": "Qwen3VLVideoProcessor",
        "size": {"shortest_edge": 4096, "longest_edge": 25165824},
        "fps": 1.5,
        "max_frames": 64,
        "cap_pixels_per_frame": True,
    }
    file = tmp_path / "video_preprocessor_config.json"
    file.write_text(json.dumps(videos))
    rules = read_video_rules(tmp_path, vision, IMAGES, max_pixels=10**6)
    assert isinstance(rules, PerClip)
    assert (rules.pixels.min_pixels, rules.pixels.max_pixels) == (4096, 25165824)
    assert (rules.sampling.fps, rules.sampling.min_frames, rules.sampling.max_frames) == (
        1.5,
        4,
        64,
    )
    assert (rules.frame_tokens, rules.frame_max_pixels) == (768, 10**6)
    for key, value in (
        ("patch_size", 14),
        ("num_frames", 8),
        ("do_sample_frames", False),
        ("video_processor_type", "Glm4vVideoProcessor"),
        ("fps", 0),
        ("min_frames", 1.5),
    ):
        file.write_text(json.dumps({**videos, key: value}))
        with pytest.raises(ValueError, match=f"{key} is {value!r}; allowed: ") as error:
            read_video_rules(tmp_path, vision, IMAGES)
        assert str(file) in str(error.value)
    nested = {"video_processor": {**videos, "fps": 3}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert read_video_rules(tmp_path, vision, IMAGES).sampling.fps == 3


def test_frames_without_a_rate(vision: VisionConfig, caplog: pytest.LogCaptureFixture) -> None:
    reader = VisualReader(vision, IMAGES, default_video_rules(vision, IMAGES))
    with caplog.at_level(logging.WARNING):
        visual = reader.video([frame(64, 64)] * 4)
    assert visual.times == pytest.approx((0.5 / 24, 2.5 / 24))
    assert "24 frames per second" in caplog.text
    assert default_video_rules(vision, IMAGES).pixels.min_pixels == CLIP_BOUNDS[0]
