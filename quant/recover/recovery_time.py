"""Estimate the run time of a recovery on this machine, from the rates of a probe.

Linear layers of decoder and tower are counted, as in `plan.time_estimate`; attention, the head over
the answers and the reading of samples are not, so the estimate is low.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...model.families import CARRIED_PARTS, family_of
from ..plan.plan import Plan, PlanRow
from ..recipe.recover import SELF, Recover
from .blocks.tuning import CHECKS, PROBES, divide_samples

TRAINED = 3
"""Multiply-adds per weight and token of a step: the outputs, and the gradients of inputs and
weights."""


def estimate_training(plan: Plan, options: Recover, tokens: Sequence[int], mac: float) -> float:
    """Estimate the seconds of a training over the whole model, teachers included.

    Teachers of other sizes than the model are not counted.

    Args:
        plan: of the model.
        options: not rounding.
        tokens: of each sample, all counted as image tokens.
        mac: seconds of one multiply-add in the dtype to train in.
    """
    assert options.epochs is not None and options.held_out is not None
    decoder = _weights(plan, "decoder")
    seeing = _weights(plan, "tower")
    models = sum(name == SELF for name, _ in options.teacher_shares)
    epoch = (1 - options.held_out) * TRAINED + options.held_out
    passes = models + options.held_out + options.epochs * epoch
    return ((models + 1) * seeing + passes * decoder) * sum(tokens) * mac


def estimate_rounding(plan: Plan, options: Recover, tokens: Sequence[int], mac: float) -> float:
    """Estimate the seconds in which the rounding of all blocks is tuned.

    Args:
        plan: of the model.
        options: rounding.
        tokens: of each calibration sample, all counted as image tokens.
        mac: seconds of one multiply-add in float32.
    """
    assert options.steps is not None and options.batch is not None
    training, held_out = divide_samples(range(len(tokens)))
    trained = options.steps * min(options.batch, len(training)) + min(PROBES, len(training))
    passes = TRAINED * trained + (CHECKS + 1) * len(held_out)
    tuned = {(row.spec.stage, row.spec.block) for row in plan.rows if row.step is not None}
    rows = [row for row in plan.rows if (row.spec.stage, row.spec.block) in tuned]
    return passes * _per_token(plan, rows) * sum(tokens) / max(1, len(tokens)) * mac


def _weights(plan: Plan, part: str) -> float:
    return _per_token(plan, [row for row in plan.rows if row.spec.part == part])


def _per_token(plan: Plan, rows: Sequence[PlanRow]) -> float:
    """Count multiply-adds per token of one pass, per image token for layers that see patches."""
    family, total = family_of(plan.config), 0.0
    for row in rows:
        if row.spec.part in ("embedding", *CARRIED_PARTS):
            continue
        patches = plan.config.vision.merge_unit if family.stage(row.spec.stage).per_patch else 1
        total += patches * row.spec.token_share * row.spec.weights
    return total
