"""Transform smoothquant: migrate activation outliers, see `methods/smoothquant.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from ...calib.statistics import CHANNEL_ABSMAX, Statistic
from ...common.validation import Allowed, validated
from ..recipe.presets import SEARCH
from ..recipe.ranges import Share
from .transform import GroupSize, Scaling, Transform, TransformWork

if TYPE_CHECKING:
    from ...calib.sequential import CalibrationBlock
    from ..driver.scaling.transforms import BlockTransforms
    from ..plan.channel_groups import PlannedTransform

Alpha = Annotated[Share | Literal["search"], Allowed(f"a number from 0 to 1, {SEARCH!r}")]


@validated
class SmoothQuantStep(Transform):
    """Migration of activation outliers into the weights."""

    alpha: Alpha = 0.5
    """Migration strength, 0 to 1; "search" tries several in every block."""

    method: ClassVar[str] = "smoothquant"
    unscaled: ClassVar[Mapping[str, Any]] = {"alpha": None}
    statistics: ClassVar[frozenset[Statistic]] = frozenset({CHANNEL_ABSMAX})

    @property
    def foresees_rounding(self) -> bool:
        """See `Transform.foresees_rounding`; a fixed alpha has nothing to compare."""
        return self.alpha == SEARCH

    def apply(
        self, run: BlockTransforms, block: CalibrationBlock, groups: Sequence[PlannedTransform]
    ) -> list[Scaling]:
        """See `Transform.apply`."""
        from ..driver.scaling.smoothing import smooth_block

        return smooth_block(run, block, groups, None if isinstance(self.alpha, str) else self.alpha)

    def work(self, groups: Sequence[GroupSize], deepest: int, weights: int) -> TransformWork:
        """See `Transform.work`: a pass for the ranges, and the trials of the search."""
        from ..driver.scaling.smoothing import SEARCH_SHARE
        from ..methods.smoothquant import ALPHAS

        trials = 0
        if self.alpha == SEARCH:
            # Float output, no smoothing, one alpha for all groups; then one group at a time.
            trials = 2 + len(ALPHAS) + len(groups) * len(ALPHAS)
        return TransformWork(token_macs=deepest + trials * weights * SEARCH_SHARE)
