"""A quantization method defined from outside, with an option and a statistic of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vlpress.calib.statistics import Statistic
from vlpress.common.validation import Real, validated
from vlpress.quant.methods.layer_inputs import LayerInputs
from vlpress.quant.methods.rtn import rtn
from vlpress.quant.recipe.scheme import QuantScheme
from vlpress.quant.steps.step import Solved, Step, Work


class MeanSquare:
    """Mean square of each input channel, and the number of tokens."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self.sums, self.tokens = torch.zeros(in_features, device=device), torch.zeros(1)

    def update(self, inputs: Tensor, weights: Tensor | None = None) -> None:
        rows = inputs.detach().flatten(0, -2).float()
        self.sums, self.tokens = self.sums + rows.square().sum(dim=0), self.tokens + len(rows)

    def merge(self, other: MeanSquare) -> None:
        self.sums, self.tokens = self.sums + other.sums, self.tokens + other.tokens

    def pack(self) -> None:
        pass

    def state(self) -> list[Tensor]:
        return [self.sums, self.tokens]

    def restore(self, state: Sequence[Tensor]) -> None:
        self.sums, self.tokens = state


MEAN_SQUARE = Statistic("channel mean square", lambda of: MeanSquare(of.in_features, of.device))


@validated
class WeightedStep(Step):
    """Round, with scales that clip where the error weighted by the channels' energy is less."""

    scheme: QuantScheme
    power: Annotated[float, Real(least=0)] = 1.0
    """Exponent of the mean squares."""

    method: ClassVar[str] = "weighted"

    @property
    def statistics(self) -> frozenset[Statistic]:
        return super().statistics | {MEAN_SQUARE}

    def solve(
        self,
        weight: Tensor,
        inputs: LayerInputs | None,
        *,
        clip: bool = False,
        fused_range: float | None = None,
    ) -> Solved:
        assert inputs is not None
        seen: MeanSquare = inputs[MEAN_SQUARE]
        energies = (seen.sums / seen.tokens) ** self.power
        rounded = rtn(weight, self.scheme, torch.diag(energies))
        error = inputs.error(weight, rounded.dequantize())
        return Solved(
            rounded, {"error": error, "energy": float(energies.mean())}, f"error {error:.1e}"
        )

    def work(self, columns: int, rows: int) -> Work:
        return Work(searched=columns * rows)
