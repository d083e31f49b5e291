"""Write `tests/golden/video_clips.json`: clips as transformers' processor of Qwen3-VL makes them.

It needs torchvision, which the test environment lacks:

    pip install transformers==5.23.0 torch torchvision
    python tools/golden_video.py tests/golden/video_clips.json
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import (
    Qwen3VLVideoProcessor,
    smart_resize,
)

BOUNDS = [(4096, 25165824), (131072, 786432), (40960, 163840)]


def sizes(generator: random.Random) -> list[dict[str, Any]]:
    """Frame counts and sides of all magnitudes, with odd counts and sides under one token."""
    cases = []
    for index in range(60):
        low, high = BOUNDS[index % len(BOUNDS)]
        count = generator.choice([2, 3, 4, 5, 7, 8, 63, 768])
        height, width = (int(10 ** generator.uniform(1.0, 3.3)) for _ in range(2))
        if max(height, width) > 150 * min(height, width):
            continue
        new = smart_resize(count, height, width, 2, 32, low, high)
        cases.append(
            {
                "count": count,
                "height": height,
                "width": width,
                "bounds": [low, high],
                "expected_hw": list(new),
            }
        )
    return cases


def frames(generator: random.Random) -> list[dict[str, Any]]:
    """Videos of several rates, with the times of their temporal patches."""
    processor: Any = SimpleNamespace(fps=2, min_frames=4, max_frames=768)
    nothing: Any = None  # the times do not depend on the processor
    cases = []
    for total in (1, 2, 3, 4, 5, 17, 100, 301, 2000):
        rate = generator.choice([1.0, 7.3, 24.0, 25.0, 29.97, 60.0])
        for options in ({}, {"fps": 0.7}, {"num_frames": min(5, total)}):
            metadata: Any = SimpleNamespace(total_num_frames=total, fps=rate)
            indices = Qwen3VLVideoProcessor.sample_frames(processor, metadata, **options)
            times = Qwen3VLProcessor._calculate_timestamps(nothing, indices.copy(), rate, 2)
            cases.append(
                {
                    "total": total,
                    "rate": rate,
                    "options": options,
                    "indices": indices.tolist(),
                    "times": [f"{time:.1f}" for time in times],
                }
            )
    return cases


def pixels() -> dict[str, Any]:
    """Patches of a clip that needs no scaling."""
    video = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    processor = Qwen3VLVideoProcessor(do_sample_frames=False, cap_pixels_per_frame=False)
    made = processor([torch.from_numpy(video).permute(0, 3, 1, 2)], return_tensors="pt")
    patches = made["pixel_values_videos"]
    return {
        "grid": made["video_grid_thw"][0].tolist(),
        "shape": list(patches.shape),
        "sum": patches.double().sum().item(),
        "first": patches[0, :8].tolist(),
        "weighted": (patches.double().sum(1) * torch.arange(len(patches))).sum().item(),
    }


def main() -> None:
    """Compute all cases and write them."""
    generator = random.Random(0)
    golden = {
        "transformers": transformers.__version__,
        "sizes": sizes(generator),
        "frames": frames(generator),
        "pixels": pixels(),
    }
    Path(sys.argv[1]).write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()
