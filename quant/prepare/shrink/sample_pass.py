"""Run the calibration samples through a float checkpoint, one block at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from ....calib.block_runner import CompareStates, TokenWeightFn
from ....calib.disk_activation_store import DiskActivationStore
from ....calib.fixed_weights import GRADIENTS
from ....calib.sequential import CalibrationBlock, CalibrationPass
from ....calib.token_weights import find_token_weights
from ....model.checkpoint import CheckpointReader
from ....model.config import ModelConfig
from ....model.families import LinearSpec
from ....model.loading import (
    build_model,
    check_tensors,
    check_tied_head,
    choose_device,
    choose_dtype,
    load_model,
)
from ....model.processing.inputs import Prompt
from ....model.qwen_vl import QwenVL
from ...driver.checkpoint_blocks import CheckpointBlocks
from ...driver.visual_tokens import load_tower, reduce_prompts
from ...kernels.bf16_linear import select_syrk
from ...runtime.kernel_selection import accelerate_layers_
from ..context import Context

CACHE_BYTES = 2**28
"""Activations that stay in memory between two blocks; all of them are in files too."""


@dataclass(frozen=True)
class SamplePass:
    """A checkpoint whose blocks are loaded one by one, and the samples that run through them."""

    reader: CheckpointReader
    model: QwenVL
    """Modules of blocks that are not loaded are on `meta`."""
    device: torch.device
    prompts: Sequence[Prompt]
    token_weights: TokenWeightFn

    @classmethod
    def open(cls, source: Path, context: Context) -> SamplePass:
        """Check the checkpoint and encode the samples.

        Raises:
            ValueError: the checkpoint is damaged, a sample cannot be encoded, or token weights need
                samples that there are not.
        """
        settings, calibration = context.settings, context.recipe.calibration
        config, reader = ModelConfig.from_folder(source), CheckpointReader(source)
        device = choose_device(settings.device)
        model = build_model(config, dtype=choose_dtype(settings.dtype, config, reader))
        check_tensors(reader, model)
        check_tied_head(reader, model)
        accelerate_layers_(model, device)
        prompts = context.prompts(source)
        rule = context.recipe.vision_input.reduction
        if rule is not None and any(prompt.visuals for prompt in prompts):
            prompts = reduce_prompts(load_tower(source, device, settings.dtype), rule, prompts)
        whole = model
        if calibration.token_weights in GRADIENTS:
            # Gradients need the whole model in memory; it is freed before the pass starts.
            whole = load_model(source, device=device, dtype=model.dtype)
            accelerate_layers_(whole, device)
        weights = find_token_weights(calibration.token_weights, whole, prompts)
        return cls(reader, model, device, prompts, weights)

    def run(
        self,
        targets: Sequence[LinearSpec],
        scratch: Path,
        visit: Callable[[CalibrationBlock], None],
        compare: Callable[[str], CompareStates | None] | None = None,
    ) -> None:
        """Run all samples through the blocks up to the last one with a target.

        Args:
            targets: linear layers whose inputs can be observed, in the order of computation.
            scratch: empty folder for activations.
            visit: called with each loaded block; it may observe inputs and replace layers.
            compare: called with the path of each block; see `CalibrationBlock.finish`.

        Raises:
            ValueError: there are no samples, or an output is not finite.
        """
        with closing(DiskActivationStore(scratch, self.device, CACHE_BYTES)) as store:
            for block in CalibrationPass(
                self.model,
                self.prompts,
                targets,
                # A block runs as a whole: its layers become narrower between tap and output.
                true_sequential=False,
                token_weights=self.token_weights,
                syrk=select_syrk(self.device),
                blocks=CheckpointBlocks(self.reader, self.model, (), self.device),
                store=store,
            ):
                with block.loaded():
                    visit(block)
                    result = block.finish(None if compare is None else compare(block.path))
                    store.keep(result.pending_keys)
                if not all(map(math.isfinite, result.largest)):
                    raise ValueError(
                        f"the output of {block.path} is not finite for a calibration sample: "
                        f"activations overflow in {self.model.dtype}; calibrate in bf16 or fp32, "
                        "or look at the samples"
                    )
