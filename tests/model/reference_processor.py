"""transformers' own AutoProcessor of a checkpoint folder, for comparison.

AutoProcessor also opens a video processor, which needs torchvision. That package is not a test
dependency, because transformers uses other code for images if it is installed. An empty stand-in
replaces the video processor. All other code, from reading the folder to ids and pixels, is
transformers' own. Videos cannot be compared in this way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import transformers
from transformers.processing_utils import ProcessorMixin

from vlpress.model.processing.processor import Processor


class NoVideos(dict[str, object]):
    """Stand-in for the video processor; a dictionary, because processors are logged."""

    model_input_names: Sequence[str] = ()


@dataclass(frozen=True)
class Inputs:
    """Token ids of a prompt, and the patches and grids of its images."""

    ids: list[int]
    pixels: torch.Tensor
    grids: list[list[int]]


def reference_processor(folder: Path) -> Any:
    """Load the processor that transformers chooses for a folder.

    Raises:
        Exception: any error of transformers for the folder.
    """
    # By its path: without torchvision, the public name is a dummy that raises.
    auto = import_module("transformers.models.auto.video_processing_auto").AutoVideoProcessor
    with (
        patch.object(auto, "from_pretrained", lambda *_, **__: NoVideos()),
        patch.object(ProcessorMixin, "check_argument_for_proper_class"),
    ):
        opener: Any = transformers.AutoProcessor
        return opener.from_pretrained(folder, local_files_only=True)


def reference_inputs(reference: Any, messages: Sequence[Mapping[str, Any]]) -> Inputs:
    """What transformers feeds to a model for messages with images.

    Without a template of its own its processor refuses to choose one; the tokenizer has one then.
    """
    own = reference.chat_template is not None
    found = reference.apply_chat_template(
        messages,
        chat_template=None if own else reference.tokenizer.get_chat_template(),
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    pixels = found.get("pixel_values", torch.zeros(0))
    grids = found.get("image_grid_thw", torch.zeros(0))
    return Inputs(found["input_ids"][0].tolist(), pixels, grids.tolist())


def our_inputs(processor: Processor, messages: Sequence[Mapping[str, Any]]) -> Inputs:
    """What vlpress feeds to a model for the same messages."""
    prompt = processor.encode(messages)
    patches = [visual.patches for visual in prompt.visuals]
    return Inputs(
        prompt.input_ids.tolist(),
        torch.cat(patches) if patches else torch.zeros(0),
        [list(visual.grid) for visual in prompt.visuals],
    )


def assert_same_inputs(
    processor: Processor, reference: Any, messages: Sequence[Mapping[str, Any]]
) -> None:
    """Compare ids and grids exactly, and pixels to the last digits of float32."""
    ours, theirs = our_inputs(processor, messages), reference_inputs(reference, messages)
    assert ours.ids == theirs.ids
    assert ours.grids == theirs.grids
    torch.testing.assert_close(ours.pixels, theirs.pixels, rtol=0, atol=1e-5)
