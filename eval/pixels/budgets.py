"""Visual-token budgets: parsing, the range that a model allows, and the choice among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..stats.verdict import Verdict

BUDGETS = (256, 512, 768, 1280)
"""Visual tokens per image where none are given."""


def parse_budgets(given: str | int | Sequence[str | int] | None) -> tuple[int, ...]:
    """Return the budgets of the option `--budgets`, the largest first.

    Args:
        given: numbers, or texts of numbers separated by commas; None: `BUDGETS`.

    Raises:
        ValueError: a budget is given twice.
    """
    words = [given] if isinstance(given, str | int) else given or BUDGETS
    budgets = [int(number) for word in words for number in str(word).split(",")]
    if repeated := sorted({budget for budget in budgets if budgets.count(budget) > 1}):
        raise ValueError(f"--budgets names {repeated[0]} twice; give each budget once")
    return tuple(sorted(budgets, reverse=True))


@dataclass(frozen=True)
class BudgetRange:
    """The budgets that a model's preprocessing allows.

    Args:
        min_pixels: smallest area of a scaled image.
        max_pixels: largest area of a scaled image.
        pixels_per_token: area of the square of pixels that becomes one token.
    """

    min_pixels: int
    max_pixels: int
    pixels_per_token: int

    @property
    def least(self) -> int:
        """Smallest budget: images are enlarged to `min_pixels`."""
        return -(-self.min_pixels // self.pixels_per_token)

    @property
    def most(self) -> int:
        """Largest budget, that of the checkpoint itself."""
        return self.max_pixels // self.pixels_per_token

    def check(self, budgets: Sequence[int]) -> None:
        """Check that the model allows all budgets.

        Raises:
            ValueError: one is below the minimum or above the maximum of the checkpoint.
        """
        for budget in budgets:
            if not self.least <= budget <= self.most:
                raise ValueError(
                    f"--budgets {budget}: the checkpoint's preprocessor allows {self.least} to "
                    f"{self.most} visual tokens per image ({self.min_pixels} to {self.max_pixels} "
                    f"pixels, {self.pixels_per_token} of them a token); give budgets in that range"
                )


def choose_budget(verdicts: Mapping[int, str]) -> int | None:
    """Return the smallest budget that passes together with all larger ones; None if none does.

    The budgets are tested from the largest down, and testing stops at the first one that does not
    pass. In this fixed sequence each test may have the full level: the probability of choosing a
    budget that loses more than the margin stays that of a single test (Maurer, Hothorn and
    Lehmacher, "Multiple comparisons in drug clinical trials and preclinical assays: a-priori
    ordered hypotheses", 1995).

    Args:
        verdicts: by budget, of those that change an image.
    """
    chosen = None
    for budget in sorted(verdicts, reverse=True):
        if verdicts[budget] != Verdict.PASS:
            break
        chosen = budget
    return chosen
