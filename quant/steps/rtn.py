"""Method rtn: round every weight to the nearest level, see `methods/rtn.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...common.validation import validated
from .step import GridStep, Solved

if TYPE_CHECKING:
    from torch import Tensor

    from ..methods.layer_inputs import LayerInputs


@validated
class RTNStep(GridStep):
    """Round to nearest; it has no options and needs no calibration."""

    method: ClassVar[str] = "rtn"
    rounds: ClassVar[bool] = True

    def solve(
        self,
        weight: Tensor,
        inputs: LayerInputs | None,
        *,
        clip: bool = False,
        fused_range: float | None = None,
    ) -> Solved:
        """See `Step.solve`; with inputs the error is measured as well."""
        hessian = inputs.hessian.values if inputs is not None and clip else None
        grid = self.scheme.fit_for_rounding(weight, hessian, fused_range=fused_range)
        rounded = grid.compressed(grid.nearest(weight))
        if inputs is None:
            return Solved(rounded, {}, "rounded")
        error = inputs.error(weight, rounded.dequantize())
        values: dict[str, Any] = dict.fromkeys(("error", "rtn_error", "final_error"), error)
        return Solved(rounded, values, f"rounded, error {error:.2e}")
