"""The loop over a `CalibrationPass` with callbacks, for tests that differ in these only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from vlpress.calib.observers import CrossMoment, Hessian
from vlpress.calib.sequential import BlockResult, CalibrationBlock, CalibrationPass
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
    **options: Any,
) -> None:
    """Run a pass: `prepare` gets each block with targets, `solve` each group."""
    for block in CalibrationPass(model, prompts, targets, **options):
        with block.loaded():
            if block.groups and prepare is not None:
                prepare(block)
            for group, hessian, cross in block.statistics():
                solve(group, hessian, cross)
            result = block.finish()
            if on_block_done is not None:
                on_block_done(result)
