"""One line of a table of accuracy, and what all families of rows share.

A family is a subclass of `Row`: its settings and methods, the steps of a recipe that differ from
the usual ones, and which rows are scored or compared with which.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from vlpress.quant.recipe.recipe import Recipe
from vlpress.quant.recipe.recover import Recover

from .steps import DECODER, steps_of

SAMPLE_FACTORS = {"w4a16": 4, "w3a16": 4}
"""Factor on the number of samples for settings of the decoder alone: there methods are close, a few
samples dominate the mean, and the peers are compared. Indistinguishable methods are compared in a
run-off (`choice.py`)."""

FP4 = ("nvfp4", "nvfp4a16", "mxfp4", "mxfp4a16")
HELD_OUT_FACTORS = dict.fromkeys(FP4, 4)
"""Factor on the number of held-out samples alone: a few drawings make the mean, and GPTQ is asked
for half of the divergence of rounding."""


@dataclass(frozen=True)
class Row(ABC):
    """One line of the table."""

    setting: str
    method: str
    """Steps in order, joined by a plus sign."""
    scope: str = "decoder"

    settings: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Schemes of decoder layers, or other options of the recipe, by setting."""
    has_layer_errors: ClassVar[bool] = False
    """Whether the table shows the errors of layers."""
    is_beside_plain: ClassVar[bool] = False
    """Whether rows are compared with the plain ones of nearest size in every table."""
    is_beside_start: ClassVar[bool] = False
    """Whether `beside` is the same row without one change, so that every table compares them."""
    saves_in_container: ClassVar[bool] = False
    """Whether only a packed checkpoint is smaller for what the rows do."""

    @classmethod
    @abstractmethod
    def rows(cls) -> list[Self]:
        """All rows of the family."""

    @property
    def key(self) -> str:
        """File name of the row."""
        return f"{self.setting}/{self.method}" + (
            "+vision" if self.scope.endswith("vision") else ""
        )

    @property
    def scheme(self) -> Mapping[str, Any]:
        """The family's entry for the setting."""
        return self.settings[self.setting]

    @property
    def judged_closely(self) -> bool:
        """Whether the row has more samples, see `SAMPLE_FACTORS`."""
        return self.setting in SAMPLE_FACTORS and self.scope == "decoder"

    @property
    def scored(self) -> bool:
        """Whether the benchmarks are evaluated with its checkpoint."""
        return False

    @property
    def scored_if_best(self) -> bool:
        """Whether it is scored if no other such row of its setting is better in validation."""
        return False

    @property
    def is_plain(self) -> bool:
        """Whether it is a row of integers by GPTQ alone, which others are compared with by size."""
        return False

    @property
    def draws(self) -> bool:
        """Whether its seed decides on more than the calibration samples."""
        return False

    @property
    def beside(self) -> Row | None:
        """The row whose divergence this one's is compared with, sample by sample."""
        return None

    @property
    def later_trainings(self) -> list[Recover]:
        """Trainings over the whole model after that of the recipe."""
        return []

    def sample_counts(self, validation: int, held_out: int) -> dict[str, int]:
        """Number of samples of each set; rows with the vision tower have no more than others."""
        setting = "" if self.scope == "decoder+vision" else self.setting
        return sample_counts(setting, validation, held_out)

    def seeds(self, seeds: Sequence[int]) -> list[int]:
        """Calibration seeds of the row, of those that are asked for."""
        return list(seeds)

    def recipe(self, seed: int, samples: int) -> Recipe:
        """Build the recipe of this row.

        Args:
            seed: seed of the calibration samples.
            samples: number of calibration samples.
        """
        calibration = {"samples": samples, "seed": seed}
        return Recipe.from_dict(self.content() | {"name": self.key, "calibration": calibration})

    def content(self) -> dict[str, Any]:
        """The recipe without name and calibration."""
        return {"step": steps_of(self.method, [(DECODER, self.scheme)])}


def sample_counts(setting: str, validation: int, held_out: int) -> dict[str, int]:
    """Number of samples of each set for a setting."""
    times = SAMPLE_FACTORS.get(setting, 1)
    more = HELD_OUT_FACTORS.get(setting, times)
    return {"validation": times * validation, "held_out": more * held_out}
