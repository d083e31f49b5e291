"""What a transform is: its options, the statistics it needs, what it does, and its costs.

A transform changes the float weights of a block before its layers are quantized, and leaves the
float function of the block as it is. It is a subclass of `Transform` and a row of `TRANSFORMS`
(`table.py`). As in `step.py`, torch is imported inside functions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...calib.statistics import Statistic
from ...common.validation import validated
from ..recipe.presets import DECODER
from .step import Patterns, Targets, plain_fields

if TYPE_CHECKING:
    from torch import Tensor

    from ...calib.sequential import CalibrationBlock
    from ..driver.scaling.transforms import BlockTransforms
    from ..plan.channel_groups import PlannedTransform


@dataclass(frozen=True)
class Scaling:
    """What a transform did to one channel group."""

    values: Mapping[str, Any]
    """JSON values that it chose, with the keys of `Transform.unscaled`."""
    scales: Tensor | None
    """float32 `[channels]`; the source was divided by them. None = the group was not scaled."""
    error: float | None = None
    """Relative squared error with plain rounding, of what the transform compares."""
    plain_error: float | None = None
    """The same error without the transform."""


@dataclass(frozen=True)
class GroupSize:
    """Sizes of a channel group, for the estimate of time."""

    in_features: int
    """Width of the input that is scaled."""
    weights: int
    """Weights of the quantized layers that read it."""
    depth: int
    """Weights of the block before this input."""


@dataclass(frozen=True)
class TransformWork:
    """Operations of a transform in one block, for the estimate of time."""

    token_macs: float = 0.0
    """Multiply-adds per calibration token in the layers of the block."""
    token_macs32: float = 0.0
    """Multiply-adds per calibration token of statistics, in float32."""
    macs32: float = 0.0
    """Further multiply-adds in float32."""


@validated
class Transform(ABC):
    """A transform of the float weights of each block; it adds its own options as fields."""

    targets: Targets = (DECODER,)
    """Layers whose inputs are scaled; all layers that share the input count as one."""
    ignore: Patterns = ()

    method: ClassVar[str]
    """Name in recipes."""
    unscaled: ClassVar[Mapping[str, Any]]
    """Values in the report for a group that is not scaled."""
    statistics: ClassVar[frozenset[Statistic]]
    """Statistics of the inputs that it observes."""

    @property
    def foresees_rounding(self) -> bool:
        """Whether it compares candidates by rounding weights to integers."""
        return True

    @abstractmethod
    def apply(
        self, run: BlockTransforms, block: CalibrationBlock, groups: Sequence[PlannedTransform]
    ) -> list[Scaling]:
        """Transform the channel groups of a block; returns what was done to each.

        Args:
            run: folds scales into the model.
            block: the block with its samples.
            groups: those that can be scaled, at least one.

        Raises:
            ValueError: no sample reaches the block, or its inputs overflow.
        """

    @abstractmethod
    def work(self, groups: Sequence[GroupSize], deepest: int, weights: int) -> TransformWork:
        """Count the operations in one block.

        Args:
            groups: that are scaled, at least one.
            deepest: number of weights before the last input of a quantized layer of the block.
            weights: number of weights of the block.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, which `read_step` reads."""
        return {"method": self.method, **plain_fields(self)}
