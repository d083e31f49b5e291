"""Write `tests/golden/mrope_ids.json`: position ids of the original implementation.

Run with transformers 4.51.3, whose `get_rope_index` is the published rule (newer versions advance
differently after a video):

    pip install transformers==4.51.3 'huggingface_hub<1' torch
    python tools/golden_mrope.py tests/golden/mrope_ids.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLForConditionalGeneration,
)

IMAGE, VIDEO, START, END = 290, 291, 292, 293
MERGE = 2

# A prompt is a list of text lengths and visuals; a visual is (kind, (t, h, w) in patches, seconds
# per temporal patch).
Segment = int | tuple[str, tuple[int, int, int], float]
CASES: dict[str, tuple[float, list[Segment]]] = {
    "text": (2, [17]),
    "one image": (2, [5, ("image", (1, 6, 10), 0.0), 7]),
    "three unequal images": (
        2,
        [
            3,
            ("image", (1, 4, 12), 0.0),
            2,
            ("image", (1, 14, 2), 0.0),
            9,
            ("image", (1, 6, 6), 0.0),
            4,
        ],
    ),
    "two images side by side": (
        2,
        [4, ("image", (1, 4, 6), 0.0), 0, ("image", (1, 8, 4), 0.0), 3],
    ),
    "nothing after the image": (2, [2, ("image", (1, 4, 4), 0.0), 0]),
    "video taller than long": (2, [3, ("video", (2, 12, 4), 1.0), 5]),
    "video longer than tall": (2, [3, ("video", (9, 4, 4), 1.0), 5]),
    "video at half a frame a second": (2, [6, ("video", (3, 4, 6), 4.0), 5]),
    "video at 1.5 frames a second": (2, [6, ("video", (5, 4, 6), 2 / 1.5), 5]),
    "video at 29.97 frames a second": (4, [6, ("video", (12, 4, 4), 2 / 29.97), 5]),
    "video at 7.3 frames a second, 25 tokens": (25, [1, ("video", (6, 4, 4), 2 / 7.3), 5]),
    "two videos of different rates": (
        2,
        [2, ("video", (4, 4, 4), 1.0), 3, ("video", (3, 6, 4), 0.37), 3],
    ),
    "image, video, image": (
        2,
        [
            4,
            ("image", (1, 6, 4), 0.0),
            3,
            ("video", (4, 4, 8), 0.8),
            2,
            ("image", (1, 4, 4), 0.0),
            6,
        ],
    ),
    "video, image, video": (
        4,
        [
            1,
            ("video", (2, 4, 4), 1.0),
            1,
            ("image", (1, 8, 8), 0.0),
            1,
            ("video", (3, 4, 4), 0.5),
            1,
        ],
    ),
}


def prompt_ids(segments: list[Segment]) -> list[int]:
    """Token ids of a case: text counts up from 1, visuals are between start and end tokens."""
    ids: list[int] = []
    for segment in segments:
        if isinstance(segment, int):
            ids += [1 + index % 100 for index in range(segment)]
        else:
            kind, (t, h, w), _ = segment
            token = IMAGE if kind == "image" else VIDEO
            ids += [START, *[token] * (t * (h // MERGE) * (w // MERGE)), END]
    return ids


def golden(model_class: Any, tokens_per_second: float, segments: list[Segment]) -> list[list[int]]:
    """Position ids `[3][tokens]` of the library's own method, called without a model."""
    config = SimpleNamespace(
        vision_config=SimpleNamespace(
            spatial_merge_size=MERGE, tokens_per_second=tokens_per_second
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
    )
    visuals = [segment for segment in segments if not isinstance(segment, int)]
    images = [grid for kind, grid, _ in visuals if kind == "image"]
    videos = [(grid, seconds) for kind, grid, seconds in visuals if kind == "video"]
    arguments: dict[str, Any] = {
        "input_ids": torch.tensor([prompt_ids(segments)]),
        "image_grid_thw": torch.tensor(images) if images else None,
        "video_grid_thw": torch.tensor([grid for grid, _ in videos]) if videos else None,
    }
    if model_class is Qwen2_5_VLForConditionalGeneration and videos:
        arguments["second_per_grid_ts"] = torch.tensor([seconds for _, seconds in videos])
    ids, _ = model_class.get_rope_index(SimpleNamespace(config=config), **arguments)
    result: list[list[int]] = ids[:, 0].tolist()
    return result


def main(path: Path) -> None:
    """Compute all cases for both families and write them."""
    if transformers.__version__ != "4.51.3":
        raise SystemExit(f"transformers {transformers.__version__} found; needs 4.51.3")
    families = {
        "qwen2_vl": Qwen2VLForConditionalGeneration,
        "qwen2_5_vl": Qwen2_5_VLForConditionalGeneration,
    }
    cases = []
    for family, model_class in families.items():
        for name, (rate, segments) in CASES.items():
            visuals = [segment for segment in segments if not isinstance(segment, int)]
            cases.append(
                {
                    "family": family,
                    "name": name,
                    "tokens_per_second": rate,
                    "input_ids": prompt_ids(segments),
                    "grids": [grid for _, grid, _ in visuals],
                    "seconds_per_grid": [seconds for _, _, seconds in visuals],
                    "position_ids": golden(model_class, rate, segments),
                }
            )
    tokens = {"image": IMAGE, "video": VIDEO, "vision_start": START, "vision_end": END}
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
    header = json.dumps({"transformers": transformers.__version__, "tokens": tokens})
    path.write_text(f'{header[:-1]}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
