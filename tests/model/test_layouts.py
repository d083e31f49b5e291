"""Every form of checkpoint folder gives transformers' inputs, and the same model.

`reference_processor` runs transformers' AutoProcessor without torchvision: all of its own code but
the processor for videos, so images are compared and videos are not.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from layouts import BOUNDS, LAYOUTS, TINY
from PIL import Image
from reference_processor import assert_same_inputs, reference_processor

from vlpress.model.loading import load_model
from vlpress.model.processing.inputs import Prompt
from vlpress.model.processing.processor import Processor
from vlpress.model.qwen_vl import QwenVL


def make_image(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


SMALL = {"type": "image", "image": make_image(40, 30)}  # enlarged to the lower bound
LARGE = {"type": "image", "image": make_image(310, 205)}  # scaled down to the upper
QUESTION = {"type": "text", "text": "What is shown? 这是什么？ Answer: A, B or 12."}
CONVERSATIONS: dict[str, Sequence[dict[str, Any]]] = {
    "one image": [{"role": "user", "content": [LARGE, QUESTION]}],
    "two images": [{"role": "user", "content": [SMALL, QUESTION, LARGE, QUESTION]}],
    "turns": [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": [SMALL, QUESTION]},
        {"role": "assistant", "content": "Grey"},
        {"role": "user", "content": [QUESTION]},
    ],
}


@dataclass(frozen=True)
class Written:
    """A folder, and the model that was written into it."""

    folder: Path
    model: QwenVL


@pytest.fixture(scope="module", params=LAYOUTS)
def written(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Written]:
    folder = tmp_path_factory.mktemp("layout")
    yield Written(folder, LAYOUTS[request.param].write(folder))
    shutil.rmtree(folder)  # all of them are 300 MB


def test_inputs_are_those_of_transformers(written: Written) -> None:
    ours, theirs = Processor.from_folder(written.folder), reference_processor(written.folder)
    assert (ours.min_pixels, ours.max_pixels) == tuple(BOUNDS.values())
    for messages in CONVERSATIONS.values():
        assert_same_inputs(ours, theirs, messages)


def test_the_model_is_the_one_that_was_written(written: Written) -> None:
    loaded = load_model(written.folder, device="cpu")
    assert loaded.dtype is torch.bfloat16
    assert torch.equal(logits(loaded), logits(written.model))


def logits(model: QwenVL) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model([prompt()])[0]
    return found


@cache
def prompt() -> Prompt:
    return Processor.from_folder(TINY, **BOUNDS).encode(CONVERSATIONS["one image"])
