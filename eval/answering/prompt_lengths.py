"""Prompt lengths without decoding an image: its size alone determines its number of tokens."""

from __future__ import annotations

import torch

from ...model.processing.inputs import Visual
from ...model.processing.processor import Processor
from ..tasks.task import Item


def prompt_length(item: Item, processor: Processor) -> int:
    """Count the tokens of an item's prompt, image tokens included.

    Raises:
        ValueError: the prompt cannot be built, or the header of an image cannot be read.
    """
    return len(processor.encode(item.messages, visuals=placeholders(item, processor)))


def placeholders(item: Item, processor: Processor) -> list[Visual]:
    """Return the visuals of an item's images without patch values.

    Raises:
        ValueError: the header of an image cannot be read.
    """
    area = item.pixels.area if item.pixels else (processor.min_pixels, processor.max_pixels)
    return [_placeholder(image.size, area, processor) for image in item.images]


def _placeholder(size: tuple[int, int], area: tuple[int, int], processor: Processor) -> Visual:
    """Return the visual that `Processor.image` makes of an image, without patch values.

    Args:
        size: width and height of the image in pixels.
        area: smallest and largest number of pixels after scaling.
        processor: processor of the model.
    """
    vision = processor.config.vision
    height, width = processor.reader.image_size(*size, area)
    grid = (1, height // vision.patch_size, width // vision.patch_size)
    patches = torch.zeros(1, 1).expand(grid[1] * grid[2], 1)
    return Visual("image", patches, grid, 0.0, "")
