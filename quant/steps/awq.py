"""Transform awq: scale weight columns by the activations they multiply, see `methods/awq.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import StrictBool

from ...calib.statistics import CHANNEL_MEAN_ABS, HESSIAN, Statistic
from ...common.validation import Integer, validated
from .transform import GroupSize, Scaling, Transform, TransformWork

if TYPE_CHECKING:
    from ...calib.sequential import CalibrationBlock
    from ..driver.scaling.transforms import BlockTransforms
    from ..plan.channel_groups import PlannedTransform


@validated
class AWQStep(Transform):
    """Activation-aware scaling of weight columns."""

    points: Annotated[int, Integer(1)] = 20
    """Points of the grid on which the ratio is searched."""
    clip: StrictBool = True
    """Search the scales of targeted layers that are rounded; gptq has its own `scale_search`."""

    method: ClassVar[str] = "awq"
    unscaled: ClassVar[Mapping[str, Any]] = {"ratio": None, "balanced": False}
    statistics: ClassVar[frozenset[Statistic]] = frozenset({HESSIAN, CHANNEL_MEAN_ABS})

    def apply(
        self, run: BlockTransforms, block: CalibrationBlock, groups: Sequence[PlannedTransform]
    ) -> list[Scaling]:
        """See `Transform.apply`; a group is observed after those before it were scaled."""
        from ..driver.scaling.awq_scaling import scale_group

        return [
            scale_group(run, block, group, points=self.points, clip=self.clip) for group in groups
        ]

    def work(self, groups: Sequence[GroupSize], deepest: int, weights: int) -> TransformWork:
        """See `Transform.work`: a pass and a Hessian per group, and two grids of candidates."""
        return TransformWork(
            token_macs=sum(group.depth for group in groups),
            token_macs32=sum(group.in_features**2 for group in groups),
            macs32=sum(2 * self.points * group.in_features * group.weights for group in groups),
        )
