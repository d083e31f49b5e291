"""Method gptq: solve the weight column by column, see `methods/gptq.py`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import StrictBool

from ...calib.statistics import HESSIAN, Statistic
from ...common.validation import validated
from ..recipe.ranges import BlockSize, DampPercent
from .step import GridStep, Solved, Work

if TYPE_CHECKING:
    from torch import Tensor

    from ..methods.hessian.prepared_hessian import PreparedHessian
    from ..methods.layer_inputs import LayerInputs


@validated
class GPTQStep(GridStep):
    """Minimize the output error on the calibration inputs."""

    damp_percent: DampPercent = 0.01
    """Fraction of the Hessian's mean diagonal added to it."""
    act_order: StrictBool = True
    """Solve columns in order of decreasing activation energy."""
    block_size: BlockSize = 128
    """Columns per lazy update."""
    scale_search: StrictBool = True
    """Shrink scales by up to a fifth where that reduces the error."""

    method: ClassVar[str] = "gptq"
    falls_back: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mask is None or self.mask.pattern is None or self.score != "sparsegpt":
            return
        if self.act_order:
            raise ValueError(
                f"act_order is true with keep {self.keep!r} and score 'sparsegpt'; allowed: false, "
                "which solves the neighbours of a pattern together; or score wanda"
            )
        width = self.mask.pattern[1]
        if self.block_size % width:
            raise ValueError(
                f"block_size is {self.block_size} with keep {self.keep!r} and score 'sparsegpt'; "
                f"allowed: multiples of {width}"
            )

    @property
    def statistics(self) -> frozenset[Statistic]:
        """See `Step.statistics`."""
        return super().statistics | {HESSIAN}

    def solve(
        self,
        weight: Tensor,
        inputs: LayerInputs | None,
        *,
        clip: bool = False,
        fused_range: float | None = None,
    ) -> Solved:
        """See `Step.solve`; scales are searched by `scale_search`, whatever `clip` asks for."""
        from ..methods.gptq import gptq_prepared

        assert inputs is not None
        prepared = inputs.prepare(self.damp_percent, self.act_order)
        target, values, summary = self._target(weight, inputs, prepared)
        result = gptq_prepared(
            target,
            prepared,
            self.scheme,
            block_size=self.block_size,
            scale_search=self.scale_search,
            fused_range=fused_range,
            mask=self.mask,
        )
        summary = f"error {result.final_error:.2e}{summary}"
        if result.fallback:
            summary += f" ({result.fallback})"
        stats = asdict(result.stats) | values
        return Solved(result.weight, stats, summary, result.fallback, target)

    def _target(
        self, weight: Tensor, inputs: LayerInputs, prepared: PreparedHessian
    ) -> tuple[Tensor, dict[str, Any], str]:
        """Return the weight to approximate, further values for the report, and a remark on it."""
        return weight, {}, ""

    def work(self, columns: int, rows: int) -> Work:
        """See `Step.work`: factor, corrections and two triangular products."""
        return Work(
            columns=columns,
            macs=1.5 * columns**2 * rows,
            factor_macs=columns**3 / 6,
            factor=(self.damp_percent, self.act_order),
            searched=columns * rows if self.scale_search else 0,
        )

    def memory(self, columns: int, rows: int, *, calibrated: bool) -> int:
        """See `Step.memory`; fitted to measurements."""
        from ..methods.gptq import CHUNK_ELEMENTS, PANEL

        # The Hessian and its factor in float32; the weight, its working copy and a transposed one
        # in float32, and three copies of the integers; the chunks of `gptq` and its panel.
        weights = columns * rows
        panel = min(PANEL, columns) * (columns + rows)
        parts = 5 * 4 * min(CHUNK_ELEMENTS, weights) + 4 * panel
        zeros = 2 * weights if self.mask else 0  # the mask, also in the order of the solver
        return 8 * columns**2 + 15 * weights + zeros + parts
