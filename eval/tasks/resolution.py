"""Image sizes: bounds of the area after scaling, named after the publisher of the scores.

VLMEvalKit uses one pair of bounds for all its Qwen2-VL and Qwen2.5-VL entries: at least 1,280
tokens per image, which enlarges small images, and at least 100 for OCRBench.
"""

from __future__ import annotations

from dataclasses import dataclass

_TOKEN = 28 * 28  # pixels per token of Qwen2-VL and Qwen2.5-VL

DEFAULT = "model"
BUDGETS = (DEFAULT, "vlmevalkit")


@dataclass(frozen=True)
class PixelBounds:
    """Bounds of an image's area after scaling, in pixels."""

    min_pixels: int
    max_pixels: int

    @property
    def area(self) -> tuple[int, int]:
        """The bounds as `Processor.image` takes them."""
        return self.min_pixels, self.max_pixels


_USUAL = PixelBounds(1280 * _TOKEN, 16384 * _TOKEN)
_OCR = PixelBounds(100 * _TOKEN, 16384 * _TOKEN)


def check_budget(name: str) -> str:
    """Return the name of a budget if it exists.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in BUDGETS:
        raise ValueError(f"unknown pixel budget {name!r}; choose one of {', '.join(BUDGETS)}")
    return name


def find_bounds(budget: str, kind: str) -> PixelBounds | None:
    """Return the bounds of a budget for a kind of benchmark; None: those of the processor.

    Args:
        budget: a name of `BUDGETS`.
        kind: kind of the benchmark, a key of `registry.TASK_KINDS`.

    Raises:
        ValueError: the budget is unknown.
    """
    if check_budget(budget) == DEFAULT:
        return None
    return _OCR if kind == "ocrbench" else _USUAL
