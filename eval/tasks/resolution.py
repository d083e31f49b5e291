"""How large pictures are shown: bounds of their area, under the name of who measured with them.

VLMEvalKit's hold for all its Qwen2-VL and Qwen2.5-VL entries: at least 1,280 tokens for a picture,
so that small ones are enlarged, and at least 100 for OCRBench alone.
"""

from __future__ import annotations

from dataclasses import dataclass

_TOKEN = 28 * 28  # pixels behind one token of the model

DEFAULT = "model"
BUDGETS = (DEFAULT, "vlmevalkit")


@dataclass(frozen=True)
class Bounds:
    """Of a picture's area after scaling, in pixels."""

    min_pixels: int
    max_pixels: int


_USUAL = Bounds(1280 * _TOKEN, 16384 * _TOKEN)
_OCR = Bounds(100 * _TOKEN, 16384 * _TOKEN)


def pixel_budget(name: str) -> str:
    """Check the name of a budget and return it.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in BUDGETS:
        raise ValueError(f"unknown pixel budget {name!r}; choose one of {', '.join(BUDGETS)}")
    return name


def bounds_of(budget: str, kind: str) -> Bounds | None:
    """The bounds of a budget for a kind of benchmark; None leaves them to the processor.

    Args:
        budget: a name of `BUDGETS`.
        kind: of the benchmark, a key of `catalogue.KINDS`.
    """
    if pixel_budget(budget) == DEFAULT:
        return None
    return _OCR if kind == "ocrbench" else _USUAL
