from __future__ import annotations

from pathlib import Path

from vlpress.eval.pixels.visual_tokens import (
    VisualTokens,
    count_visual_tokens,
    measure_grids,
    pool_visual_tokens,
)
from vlpress.eval.tasks import open_task
from vlpress.model.processing.processor import Processor


def test_tokens_are_those_of_the_prompts(checkpoint: Path) -> None:
    """Drawings of 112 x 112 pixels are 16 tokens, and 3 x 3 with at most 12."""
    task = open_task("builtin-ocrbench", limit=6)
    own = Processor.from_folder(checkpoint)
    small = Processor.from_folder(checkpoint, max_pixels=12 * 784)
    grids, smaller = (measure_grids(task, each) for each in (own, small))
    images = len({image for item in task.items for image in item.images})
    assert set(grids.values()) == {(1, 8, 8)}
    assert count_visual_tokens(grids, grids, 4) == VisualTokens(images, 0, 16.0, 16)
    assert count_visual_tokens(smaller, grids, 4) == VisualTokens(images, images, 9.0, 9)
    item = task.items[0]
    lengths = [
        len(each.encode(item.messages, visuals=[each.image(item.images[0].open())]))
        for each in (own, small)
    ]
    assert lengths[0] - lengths[1] == 16 - 9


def test_a_benchmark_of_mixed_sizes_counts_the_affected_images(checkpoint: Path) -> None:
    task = open_task("builtin-mmmu")
    own = Processor.from_folder(checkpoint)
    grids = measure_grids(task, own)
    nine = [image for image, grid in grids.items() if grid == (1, 6, 6)]
    assert 0 < len(nine) < len(grids)
    small = Processor.from_folder(checkpoint, max_pixels=9 * 784)
    counted = count_visual_tokens(measure_grids(task, small), grids, 4)
    assert counted.affected == len(grids) - len(nine)
    assert (counted.mean, counted.largest) == (9.0, 9)


def test_means_are_pooled_over_images() -> None:
    parts = [VisualTokens(1, 0, 4.0, 4), VisualTokens(3, 0, 8.0, 9), VisualTokens(0, 0, None, 0)]
    assert pool_visual_tokens(parts) == 7.0
    assert pool_visual_tokens(parts[2:]) is None
