"""Rows of integers that training recovers afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from vlpress.quant.recipe.recover import Recover

from .row import Row
from .steps import DECODER, steps_of

RECOVERED: dict[str, dict[str, Any]] = {
    f"int{bits}-recovered": {"bits": bits, "group_size": 128} for bits in (2, 3)
}
"""Integers in decoder layers; measured on request."""
RECOVERIES: dict[str, dict[str, Any]] = {
    "scales": {"params": "scales", "samples": 8192, "epochs": 1},
    "scales,norms": {"params": ["scales", "norms"], "samples": 8192, "epochs": 1},
    "rounding": {"params": "rounding"},
    "freeze": {"params": "rounding", "freeze": [0.5, 0.75, 0.875, 1.0]},
}
"""What is trained, by the parts after the first of a method `gptaq>rounding>scales`, one after the
other (EfficientQAT's order, arXiv 2407.11062); without any, the start."""
RATES = {2: 0.002, 3: 0.0005}
"""Rate of trained scales and norms by width: the noise of a training costs more where the start is
nearer to the original (docs/log.md)."""
RECOVERED_METHODS = (
    *("rtn", "rtn>scales", "rtn>rounding"),
    *("gptq", "gptq>scales", "gptaq"),
    *(f"gptaq>{name}" for name in (*RECOVERIES, "rounding>scales")),
)


class RecoveredRow(Row):
    """Integers with training, or the start of one; of the first calibration seed alone."""

    settings = RECOVERED
    is_beside_start = True

    @classmethod
    def rows(cls) -> list[Self]:
        """All widths with their methods."""
        return [cls(setting, method) for setting in RECOVERED for method in RECOVERED_METHODS]

    @property
    def scored(self) -> bool:
        """GPTAQ, and its scales after training."""
        return self.method in ("gptaq", "gptaq>scales")

    @property
    def beside(self) -> Row | None:
        """The start."""
        start, _, recovery = self.method.partition(">")
        return replace(self, method=start) if recovery else None

    def seeds(self, seeds: Sequence[int]) -> list[int]:
        """The first seed."""
        return list(seeds[:1])

    def content(self) -> dict[str, Any]:
        """The recipe's steps, and its training."""
        start, *recoveries = self.method.split(">")
        steps = steps_of(start, [(DECODER, self.scheme)])
        return {"step": steps, **({"recover": self._training(recoveries[0])} if recoveries else {})}

    @property
    def later_trainings(self) -> list[Recover]:
        """See `Row`."""
        return [Recover(**self._training(name)) for name in self.method.split(">")[2:]]

    def _training(self, name: str) -> dict[str, Any]:
        """Options of a training of `RECOVERIES`."""
        table = RECOVERIES[name]
        return (
            table if "rounding" in table["params"] else table | {"lr": RATES[self.scheme["bits"]]}
        )
