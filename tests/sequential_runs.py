"""The loop over a `CalibrationPass` with callbacks, for tests that differ in these only."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from vlpress.calib.observers import CrossMoment, Hessian
from vlpress.calib.sequential import BlockResult, CalibrationBlock, CalibrationPass
from vlpress.calib.statistics import CROSS_MOMENT
from vlpress.calib.tap_groups import TapGroup
from vlpress.model.families import LinearSpec
from vlpress.model.processing.inputs import Prompt
from vlpress.model.qwen_vl import QwenVL

Solve = Callable[[TapGroup, Hessian, CrossMoment | None], None]


@torch.no_grad()
def run_sequential(
    model: QwenVL,
    prompts: Sequence[Prompt],
    targets: Sequence[LinearSpec],
    solve: Solve,
    *,
    prepare: Callable[[CalibrationBlock], None] | None = None,
    on_block_done: Callable[[BlockResult], None] | None = None,
    asymmetric: Collection[str] = (),
    **options: Any,
) -> None:
    """Run a pass: `prepare` gets each block with targets, `solve` each group.

    The targets in `asymmetric` are observed with cross moments.
    """
    needs = {name: [CROSS_MOMENT] for name in asymmetric}
    for block in CalibrationPass(model, prompts, targets, needs=needs, **options):
        with block.loaded():
            if block.groups and prepare is not None:
                prepare(block)
            for seen in block.statistics():
                solve(seen.group, seen.hessian, seen.observers.get(CROSS_MOMENT))
                del seen  # as the drivers do
            result = block.finish()
            if on_block_done is not None:
                on_block_done(result)
