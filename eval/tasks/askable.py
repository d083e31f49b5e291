"""Rows that a given model cannot be asked, found before its weights are loaded.

`open_task` finds the rows that no model can be asked. The others depend on the tokenizer and on the
context length: text that a vocabulary of its own reads as a placeholder, and prompts that are too
long. Prompts are tokenized in full, but no pixels are decoded: the size of an image gives the
number of its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ...model.processing.images import smart_resize
from ...model.processing.inputs import Visual
from ...model.processing.processor import Processor
from ..answering.vision_features import pictures
from ..results import StoredRun
from .broken import mark_broken
from .task import Item, Task, is_broken

Size = tuple[int, int]
"""Width and height in pixels."""


def mark_unaskable(task: Task, processor: Processor) -> Task:
    """The task with those rows broken that this processor or its model's context rules out.

    A prompt must leave room for at least one token of the answer within
    `max_position_embeddings`. The cap on answers is not reserved: few answers are that long.

    Args:
        task: as opened.
        processor: of the model that will be asked. Base and candidate have equal ones, and hence
            the same broken rows; runs that differ in them are not compared.

    Raises:
        ValueError: more than a few rows of the file are broken.
    """
    distinct = {picture for item in task.items for picture in pictures(item)}
    sizes = {picture: picture.size() for picture in distinct}
    faults = {}
    for item in task.items:
        shown = [sizes[picture] for picture in pictures(item)]
        if reason := _reason(item, shown, processor):
            faults[item.id] = reason
    return mark_broken(task, faults)


def mark_as_reference(tasks: Sequence[Task], reference: StoredRun) -> list[Task]:
    """The tasks with those rows broken that the original's evaluation found broken.

    A server does not say what its model cannot be asked; of the original that is known.

    Args:
        tasks: as opened; those that the reference does not hold are left as they are.
        reference: evaluation of the original.

    Raises:
        ValueError: more than a few rows of a file are broken.
    """
    faults = {
        name: {item["id"]: str(item["fault"]) for item in stored.items if is_broken(item)}
        for name, stored in reference.tasks.items()
    }
    return [mark_broken(task, faults.get(task.name, {})) for task in tasks]


def prompt_length(item: Item, sizes: list[Size], processor: Processor) -> int:
    """Tokens of an item's prompt, images included.

    Args:
        item: what to ask.
        sizes: of its images, in order of appearance.
        processor: of the model.

    Raises:
        ValueError: the prompt cannot be built.
    """
    area = (item.pixels.min_pixels, item.pixels.max_pixels) if item.pixels else None
    visuals = [
        _stand_in(size, area or (processor.min_pixels, processor.max_pixels), processor)
        for size in sizes
    ]
    return len(processor.encode(item.messages, visuals=visuals))


def _reason(item: Item, sizes: list[Size], processor: Processor) -> str:
    """Why an item cannot be asked; empty if it can."""
    context = processor.config.text.max_position_embeddings
    try:
        tokens = prompt_length(item, sizes, processor)
    except ValueError as error:
        return f"its prompt cannot be built ({error})"
    if tokens >= context:
        return f"its prompt of {tokens} tokens leaves no room in the model's context of {context}"
    return ""


def _stand_in(size: Size, area: tuple[int, int], processor: Processor) -> Visual:
    """An image of this size as `Processor.image` would cut it, without the patches' values."""
    vision = processor.config.vision
    height, width = smart_resize(size[1], size[0], vision.pixel_factor, *area)
    grid = (1, height // vision.patch_size, width // vision.patch_size)
    patches = torch.zeros(1, 1).expand(grid[1] * grid[2], 1)
    return Visual("image", patches, grid, 0.0, "")
