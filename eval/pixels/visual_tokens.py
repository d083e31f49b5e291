"""Visual tokens of benchmark images, from their sizes alone: no image is decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from statistics import fmean

from ...model.processing.processor import Processor
from ..answering.prompt_lengths import placeholders
from ..tasks.files.image_store import StoredImage
from ..tasks.task import Task

Grids = Mapping[StoredImage, tuple[int, int, int]]
"""Size of each different image of a benchmark in patches: time, height, width."""


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens of the different images of a benchmark."""

    images: int
    affected: int
    """Images that have another size than with the checkpoint's own setting."""
    mean: float | None
    """Per image; None without images."""
    largest: int
    """Of one image; 0 without images."""


def measure_grids(task: Task, processor: Processor) -> Grids:
    """Return the sizes that a processor scales the images of a benchmark to."""
    return {
        image: visual.grid
        for item in task.items
        for image, visual in zip(item.images, placeholders(item, processor), strict=True)
    }


def count_visual_tokens(grids: Grids, own: Grids, merge_unit: int) -> VisualTokens:
    """Count the visual tokens of a benchmark at one budget.

    Args:
        grids: at the budget.
        own: with the checkpoint's own setting.
        merge_unit: patches that the merger makes one token of.
    """
    counts = [prod(grid) // merge_unit for grid in grids.values()]
    return VisualTokens(
        images=len(counts),
        affected=sum(grids[image] != own[image] for image in grids),
        mean=fmean(counts) if counts else None,
        largest=max(counts, default=0),
    )


def pool_visual_tokens(parts: Sequence[VisualTokens]) -> float | None:
    """Return the mean number of tokens per image over several benchmarks; None without images."""
    images = sum(part.images for part in parts)
    return sum(part.images * (part.mean or 0.0) for part in parts) / images if images else None
