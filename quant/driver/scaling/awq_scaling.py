"""AWQ on a channel group of a block; the search is in `methods/awq.py`."""

from ....calib.sequential import CalibrationBlock
from ....calib.statistics import CHANNEL_MEAN_ABS, HESSIAN
from ....calib.tap_groups import TapGroup
from ...methods.awq import awq_scales
from ...methods.channel_scaling import reduce_columns
from ...plan.channel_groups import PlannedTransform
from ...recipe.scheme import QuantScheme
from ...steps.transform import Scaling
from .transforms import BlockTransforms


def scale_group(
    run: BlockTransforms,
    block: CalibrationBlock,
    row: PlannedTransform,
    *,
    points: int,
    clip: bool,
) -> Scaling:
    """Scale one channel group, if that lowers the error of its layers.

    Args:
        run: folds the scales.
        block: the block.
        row: the channel group.
        points: see `awq_scales`.
        clip: search the scales of its layers when they are rounded.

    Raises:
        ValueError: no sample reaches the block, its inputs overflow, or the error of a candidate is
            not finite.
    """
    tap, index, channels = run.input_of(row)
    names = run.quantized(row)
    first = run.rows[names[0]]
    assert first.step is not None and isinstance(first.step.scheme, QuantScheme)
    shared = TapGroup(tap, (first.spec,))
    statistics = run.observe(block, [shared], row.transform.statistics)[tap]
    try:
        best = awq_scales(
            run.weights(row),
            statistics[HESSIAN].values,
            reduce_columns(statistics[CHANNEL_MEAN_ABS].values, index, channels, "mean"),
            first.step.scheme,
            index=index,
            row_parts=[run.rows[name].spec.row_parts for name in names],
            points=points,
            # A solver searches its own scales, which are never negative.
            clip=clip and first.step.rounds,
            signed=None if first.step.rounds else False,
        )
    except ValueError as error:
        raise ValueError(f"{row.source}, input of {', '.join(names)}: {error}") from None
    scales = None
    if best.error < best.rtn_error:
        scales = run.fold(row, best.scales)
        run.record_changed(row)
    if clip:
        run.clipped.update(names)
    ratio = None if scales is None else best.ratio
    values = {"ratio": ratio, "balanced": best.balanced}
    return Scaling(values, scales, best.error, best.rtn_error)
