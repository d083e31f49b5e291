"""Method rtn: round every weight to the nearest level, see `methods/rtn.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...common.validation import validated
from ..recipe.scheme import QuantScheme
from .step import GridStep, Solved

if TYPE_CHECKING:
    from torch import Tensor

    from ..compressed_weight import CompressedWeight
    from ..methods.layer_inputs import LayerInputs

ENCODING = 5
"""Bytes per weight of a large matrix while its integers are packed and checked."""


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
        from ..methods.rtn import join_rows, row_chunks, rtn

        hessian = inputs.hessian.values if inputs is not None and clip else None
        rounded: CompressedWeight
        if isinstance(self.scheme, QuantScheme) and hessian is None:
            weights = row_chunks(weight)
            parts = [rtn(rows, self.scheme) for rows in weights]
            rounded = join_rows(parts)
            floats = (part.dequantize() for part in parts)
        else:
            grid = self.scheme.fit_for_rounding(weight, hessian, fused_range=fused_range)
            rounded, weights = grid.compressed(grid.nearest(weight)), (weight,)
            floats = (rounded.dequantize() for _ in weights)
        if inputs is None:
            return Solved(rounded, {}, "rounded")
        error = inputs.error_of_parts(weights, floats)
        values: dict[str, Any] = dict.fromkeys(("error", "rtn_error", "final_error"), error)
        return Solved(rounded, values, f"rounded, error {error:.2e}")

    def memory(self, columns: int, rows: int, *, calibrated: bool) -> int:
        """See `Step.memory`: a large matrix is rounded in runs of rows, and encoded as a whole."""
        from ..methods.rtn import chunk_rows

        chunk = min(rows, chunk_rows(columns))
        memory = super().memory(columns, chunk, calibrated=calibrated)
        return memory if chunk == rows else memory + ENCODING * columns * rows
