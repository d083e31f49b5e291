"""Method rtn: round every weight to the nearest level, see `methods/rtn.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...common.validation import validated
from ..recipe.scheme import QuantScheme
from .step import Solved, Step

if TYPE_CHECKING:
    from torch import Tensor

    from ..methods.layer_inputs import LayerInputs


@validated
class RTNStep(Step):
    """Round to nearest; it has no options and needs no calibration."""

    scheme: QuantScheme

    method: ClassVar[str] = "rtn"
    rounds: ClassVar[bool] = True

    def solve(self, weight: Tensor, inputs: LayerInputs | None, *, clip: bool = False) -> Solved:
        """See `Step.solve`; with inputs the error is measured as well."""
        from ..methods.rtn import rtn

        if inputs is None:
            return Solved(rtn(weight, self.scheme), {}, "rounded")
        rounded = rtn(weight, self.scheme, inputs.hessian.values if clip else None)
        error = inputs.error(weight, rounded.dequantize())
        values: dict[str, Any] = dict.fromkeys(("error", "rtn_error", "final_error"), error)
        return Solved(rounded, values, f"rounded, error {error:.2e}")
