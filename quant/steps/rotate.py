"""Preparation rotate: rotations that spread outliers, folded into the weights offline.

See `prepare/rotations`. "QuaRot" (arXiv 2404.00456) draws them at random, "SpinQuant" (arXiv
2405.16406) learns them; here the best of several random draws is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import StrictBool

from ...common.validation import Integer, validated
from .preparation import Foreseen, Preparation

if TYPE_CHECKING:
    from ...model.carried import CarriedTensors
    from ...model.config import ModelConfig
    from ..prepare.context import Context


@validated
class RotateStep(Preparation):
    """Rotation of the residual stream (R1) and of the values of attention heads (R2)."""

    r1: StrictBool = True
    """Rotate the residual stream; norms are folded and the head becomes a tensor of its own."""
    r2: StrictBool = True
    """Rotate the values of every key/value head, where no gate follows them."""
    seeds: Annotated[int, Integer(1, 64)] = 1
    """Draws; of several, the one is taken whose rounded model is nearest to the original."""
    samples: Annotated[int, Integer(1)] = 16
    """Calibration samples that draws are compared on."""
    drop_mtp: StrictBool = False
    """Leave out the module for multi-token prediction, which R1 cannot be folded into."""

    method: ClassVar[str] = "rotate"

    @property
    def uses_samples(self) -> bool:
        """See `Preparation.uses_samples`: one draw is compared with nothing."""
        return self.seeds > 1

    @property
    def why_not_alone(self) -> str:
        """See `Preparation.why_not_alone`."""
        if self.seeds == 1:
            return ""
        return f"seeds is {self.seeds}, and draws are compared by the layers that are quantized"

    def foresee(self, config: ModelConfig, folder: Path | None) -> Foreseen:
        """See `Preparation.foresee`."""
        from ..prepare.rotations.rotate import foresee

        return foresee(self, config, folder)

    def foresee_carried(self, config: ModelConfig, carried: CarriedTensors) -> CarriedTensors:
        """See `Preparation.foresee_carried`."""
        from ...model.carried import CarriedTensors
        from ..prepare.rotations.rotate import drops_mtp

        return CarriedTensors() if drops_mtp(self, config) else carried

    def prepare(self, source: Path, destination: Path, context: Context) -> Mapping[str, Any]:
        """See `Preparation.prepare`."""
        from ..prepare.rotations.rotate import rotate

        return rotate(self, source, destination, context)
