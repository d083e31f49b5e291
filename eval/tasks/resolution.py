"""Image sizes: bounds of the area after scaling, named after the publisher of the scores.

VLMEvalKit uses one pair of bounds for all its Qwen2-VL and Qwen2.5-VL entries: at least 1,280
tokens per image, which enlarges small images, and at least 100 for OCRBench. Its Qwen3-VL entries
have the bounds of qwen-vl-utils, and the same for OCRBench.
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT = "model"


@dataclass(frozen=True)
class PixelBounds:
    """Bounds of an image's area after scaling, in pixels."""

    min_pixels: int
    max_pixels: int

    @property
    def area(self) -> tuple[int, int]:
        """The bounds as `Processor.image` takes them."""
        return self.min_pixels, self.max_pixels


@dataclass(frozen=True)
class _Budget:
    """Bounds in tokens of a model whose tokens are squares of `factor` pixels."""

    factor: int
    min_tokens: int
    min_tokens_ocr: int = 100
    max_tokens: int = 16384

    def bounds(self, kind: str) -> PixelBounds:
        token = self.factor**2
        least = self.min_tokens_ocr if kind == "ocrbench" else self.min_tokens
        return PixelBounds(least * token, self.max_tokens * token)


_BUDGETS = {
    "vlmevalkit": _Budget(factor=28, min_tokens=1280),
    "vlmevalkit-qwen3": _Budget(factor=32, min_tokens=4),
}
BUDGETS = (DEFAULT, *_BUDGETS)


def check_budget(name: str) -> str:
    """Return the name of a budget if it exists.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in BUDGETS:
        raise ValueError(f"unknown pixel budget {name!r}; choose one of {', '.join(BUDGETS)}")
    return name


def check_budget_of_model(name: str, pixel_factor: int) -> None:
    """Check that a budget is meant for a model.

    Args:
        name: a name of `BUDGETS`.
        pixel_factor: side of the square of pixels of one token.

    Raises:
        ValueError: the budget counts tokens of another size.
    """
    if check_budget(name) == DEFAULT or _BUDGETS[name].factor == pixel_factor:
        return
    fitting = [each for each, budget in _BUDGETS.items() if budget.factor == pixel_factor]
    factor = _BUDGETS[name].factor
    raise ValueError(
        f"pixel budget {name!r} is of models whose tokens are {factor} x {factor} pixels, this "
        f"model's are {pixel_factor} x {pixel_factor}; choose {', '.join((DEFAULT, *fitting))}"
    )


def find_bounds(budget: str, kind: str) -> PixelBounds | None:
    """Return the bounds of a budget for a kind of benchmark; None: those of the processor.

    Args:
        budget: a name of `BUDGETS`.
        kind: kind of the benchmark, a key of `registry.TASK_KINDS`.

    Raises:
        ValueError: the budget is unknown.
    """
    return None if check_budget(budget) == DEFAULT else _BUDGETS[budget].bounds(kind)
