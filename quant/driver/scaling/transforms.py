"""Run the transforms of a recipe on a block before its layers are quantized.

The formulas are in `methods/`, the transforms' own modules here (`smoothing.py`, `awq_scaling.py`).
`BlockTransforms` gives them the weights, observes inputs and folds scales into the model. Folding
leaves the float function of the block as it is, so other blocks are not affected.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ....calib.sequential import CalibrationBlock
from ....calib.statistics import ObservedInput, Statistic
from ....calib.tap_groups import TapGroup, tap_groups
from ....model.qwen_vl import QwenVL
from ...kernels.bf16_linear import select_syrk
from ...methods.channel_scaling import (
    channel_index,
    count_channels,
    reader_names,
    rescale_,
    source_names,
)
from ...plan.channel_groups import PlannedTransform
from ...plan.plan import Plan
from ...targets import weight_of
from ..report import TransformReport


class BlockTransforms:
    """The transforms of a plan, run block by block."""

    def __init__(self, model: QwenVL, plan: Plan, device: torch.device) -> None:
        self.model, self.device = model, device
        self.rows = {row.name: row for row in plan.quantized}
        self.planned = plan.transforms
        self.reports: list[TransformReport] = []
        """One per planned transform, in the order in which they ran."""
        self.changed: set[str] = set()
        """Names of rescaled tensors that stay in float: the checkpoint needs their new values."""
        self.clipped: set[str] = set()
        """Names of layers whose scales are searched if they are rounded."""

    def prepare(self, block: CalibrationBlock) -> list[TransformReport]:
        """Run the transforms of a block, in the order of the recipe.

        Returns:
            Their reports, which are appended to `reports` too.

        Raises:
            ValueError: no sample reaches the block, or its inputs overflow.
        """
        planned = [row for row in self.planned if row.block == block.path]
        before = len(self.reports)
        for transform, group in groupby(planned, key=lambda row: row.transform):
            rows = list(group)
            if active := [row for row in rows if not row.reason]:
                scalings = transform.apply(self, block, active)
                self.reports += map(TransformReport.of, active, scalings)
            self.reports += [TransformReport.of(row) for row in rows if row.reason]
        return self.reports[before:]

    def observe(
        self,
        block: CalibrationBlock,
        groups: Sequence[TapGroup],
        statistics: Collection[Statistic],
        samples: Sequence[int] | None = None,
    ) -> dict[str, dict[Statistic, Any]]:
        """Observe the inputs of tap groups.

        Args:
            block: as it is now.
            groups: groups of the block.
            statistics: none of them from the float model.
            samples: numbers of some of the block's samples; None for all.

        Returns:
            One observer per statistic, by tap.

        Raises:
            ValueError: no sample reaches the block.
        """
        # Ranks exchange the observers in this order.
        ordered = sorted(statistics, key=lambda statistic: statistic.name)
        makers = {s: s.observer for s in ordered if s.observer is not None}
        syrk = select_syrk(self.device)
        inputs = {
            group.linears[0].name: ObservedInput(group.in_features, self.device, syrk)
            for group in groups
        }
        observers = block.observe(
            lambda: {name: [make(of) for make in makers.values()] for name, of in inputs.items()},
            samples,
        )
        return {
            group.tap: dict(zip(makers, observers[group.linears[0].name], strict=True))
            for group in groups
        }

    def weights(self, row: PlannedTransform) -> list[Tensor]:
        """Return the float weights of the readers that a step quantizes."""
        return [weight_of(self.model, self.rows[name].spec) for name in self.quantized(row)]

    def fold(self, row: PlannedTransform, scales: Tensor) -> Tensor:
        """Divide a source by `scales`; returns the scales that its readers were multiplied by.

        Call `record_changed` if they stay.
        """
        tensors = self.tensors(row.block)
        stored = {}
        if self.model.config.dtype is not None:
            # The checkpoint stores these in its own dtype: calibrate on the values it will hold.
            stored = dict.fromkeys(self._float_tensors(row, tensors), self.model.config.dtype)
        factors = rescale_(
            tensors, row.block, row.channel_group, 1 / scales, self.model.config, stored=stored
        )
        return 1 / factors

    def tensors(self, block: str) -> dict[str, Tensor]:
        """Return the parameters of a block by full name."""
        parameters = self.model.get_submodule(block).named_parameters(prefix=block)
        return {name: parameter.data for name, parameter in parameters}

    def _float_tensors(self, row: PlannedTransform, tensors: Mapping[str, Tensor]) -> list[str]:
        """List the scaled tensors that the checkpoint holds in float."""
        names = source_names(tensors, row.block, row.channel_group)
        names += reader_names(row.block, row.channel_group)
        return [name for name in names if name.removesuffix(".weight") not in self.rows]

    def record_changed(self, row: PlannedTransform) -> None:
        """Note the float tensors of the checkpoint that folding has changed."""
        self.changed.update(self._float_tensors(row, self.tensors(row.block)))

    def quantized(self, row: PlannedTransform) -> list[str]:
        """List the readers that a step quantizes."""
        return [name for name in row.linears if name in self.rows]

    def input_of(self, row: PlannedTransform) -> tuple[str, Tensor, int]:
        """Return the tap of the readers, the channel of each input column, and their number."""
        channels = count_channels(self.tensors(row.block), row.block, row.channel_group)
        tap = self.rows[self.quantized(row)[0]].spec.tap
        index = channel_index(row.channel_group, channels, self.model.config)
        return tap, index.to(self.device), channels

    def groups(self, block: str) -> list[TapGroup]:
        """List the inputs of the layers of a block that a step quantizes."""
        return tap_groups([row.spec for row in self.rows.values()], block)
