"""Method gptaq: gptq towards the outputs of the float model, see `methods/gptaq.py`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ...calib.statistics import CROSS_MOMENT, Statistic
from ...common.validation import validated
from ..recipe.adapter import AdapterKind
from ..recipe.ranges import Share
from .gptq import GPTQStep
from .step import Work

if TYPE_CHECKING:
    from torch import Tensor

    from ..methods.hessian.prepared_hessian import PreparedHessian
    from ..methods.layer_inputs import LayerInputs


@validated
class GPTAQStep(GPTQStep):
    """Approximate the weight whose outputs come closest to those of the float model."""

    strength: Share = 0.5
    """Fraction of the correction towards the float model's outputs, 0 to 1."""

    method: ClassVar[str] = "gptaq"
    adapters: ClassVar[tuple[AdapterKind, ...]] = ("eora", "svd")
    """An adapter that comes first would itself have to follow the float model."""

    @property
    def statistics(self) -> frozenset[Statistic]:
        """See `Step.statistics`."""
        return super().statistics | {CROSS_MOMENT}

    def _target(
        self, weight: Tensor, inputs: LayerInputs, prepared: PreparedHessian
    ) -> tuple[Tensor, dict[str, Any], str]:
        """See `GPTQStep._target`. The errors of the report are relative to the target."""
        from ..methods.gptaq import asymmetric_target, relative_change

        target = weight
        if prepared.factor is not None:  # without one, the layer is rounded
            deviation = inputs.deviation(weight)
            target = asymmetric_target(weight, deviation, prepared, strength=self.strength)
        shift = relative_change(weight, target)
        return target, {"target_shift": shift}, f", target moved by {shift:.1%}"

    def work(self, columns: int, rows: int) -> Work:
        """See `Step.work`: in addition the product with the cross moment, two triangular solves."""
        work = super().work(columns, rows)
        return replace(work, macs=work.macs + 2 * columns**2 * rows)

    def memory(self, columns: int, rows: int, *, calibrated: bool) -> int:
        """See `Step.memory`: in addition the cross moment and the target."""
        memory = super().memory(columns, rows, calibrated=calibrated)
        return memory + 4 * columns**2 + 4 * columns * rows
