"""Method rtn: round every weight to the nearest level, see `methods/rtn.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ...calib.statistics import HESSIAN, Statistic
from ...common.validation import validated
from ..recipe.adapter import AdapterKind
from ..recipe.mask import Score
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
    """Round to nearest; only a mask by "wanda" and an adapter by "eora" need calibration."""

    method: ClassVar[str] = "rtn"
    rounds: ClassVar[bool] = True
    scores: ClassVar[tuple[Score, ...]] = ("magnitude", "wanda")
    adapters: ClassVar[tuple[AdapterKind, ...]] = ("svd", "eora", "svd_first")

    @property
    def statistics(self) -> frozenset[Statistic]:
        """See `Step.statistics`; the energies of the input are the diagonal of the Hessian."""
        return super().statistics | ({HESSIAN} if self.score == "wanda" else set())

    def solve(
        self,
        weight: Tensor,
        inputs: LayerInputs | None,
        *,
        clip: bool = False,
        fused_range: float | None = None,
    ) -> Solved:
        """See `Step.solve`; with inputs the error is measured as well."""
        from ..methods.masks import choose_zeros, hold_zeros
        from ..methods.rtn import join_rows, row_chunks, rtn

        hessian = inputs.hessian.values if inputs is not None and clip else None
        rounded: CompressedWeight
        original = weight
        if self.mask is not None:
            energies = None if inputs is None else inputs.hessian.values.diagonal()
            weight = hold_zeros(weight, choose_zeros(weight, self.mask, energies))
        if isinstance(self.scheme, QuantScheme) and hessian is None:
            weights = row_chunks(original)
            parts = [rtn(rows, self.scheme) for rows in row_chunks(weight)]
            rounded = join_rows(parts)
            floats = (part.dequantize() for part in parts)
        else:
            grid = self.scheme.fit_for_rounding(weight, hessian, fused_range=fused_range)
            rounded, weights = grid.compressed(grid.nearest(weight)), (original,)
            floats = (rounded.dequantize() for _ in weights)
        if inputs is None:
            return Solved(rounded, {}, "rounded")
        error = inputs.error_of_parts(weights, floats)
        values: dict[str, Any] = dict.fromkeys(("error", "rtn_error", "final_error"), error)
        return Solved(rounded, values, f"rounded, error {error:.2e}")

    def memory(self, columns: int, rows: int, *, calibrated: bool) -> int:
        """See `Step.memory`: a large matrix is rounded in runs of rows, and encoded as a whole.

        With a mask the float weight is copied as a whole, and its zeros are counted.
        """
        from ..methods.rtn import chunk_rows

        if self.mask is not None:
            return super().memory(columns, rows, calibrated=calibrated)
        chunk = min(rows, chunk_rows(columns))
        memory = super().memory(columns, chunk, calibrated=calibrated)
        return memory if chunk == rows else memory + ENCODING * columns * rows
