"""Compare draws of rotations by the divergence of their rounded models from the original.

Layers are rounded to nearest by the schemes of the recipe's steps; transforms and solvers are left
out. Files and memory are those of a quantization: one block is in memory at a time, and each draw
is written to a temporary folder, which takes the disk space of the float model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ....calib.activation_store import MemoryActivationStore, hold_block
from ....calib.block_runner import BlockRunner
from ....model.carried import CarriedTensors
from ....model.checkpoint import CheckpointReader
from ....model.config import ModelConfig
from ....model.families import family_of
from ....model.processing.inputs import Prompt
from ...checkpoint.saving import save_finished
from ...checkpoint.verify import hold_head, open_blocks, run_blocks
from ...driver.blockwise import BlockwiseQuantizer
from ...driver.journal import Journal
from ...plan.plan import make_plan
from ...recipe.recipe import Calibration, Recipe
from ...recipe.scheme import GridScheme
from ...recipe.vision_input import VisionInput
from ...steps.rtn import RTNStep
from ..context import Context
from ..rewriting import rewrite_checkpoint
from .folding import Folding


def divergences(
    draws: Sequence[Folding],
    config: ModelConfig,
    reader: CheckpointReader,
    near: Path,
    context: Context,
    count: int,
) -> list[float]:
    """Measure each draw.

    Args:
        draws: at least one.
        config: of the rotated model.
        reader: of the source.
        near: existing folder, beside which temporary ones are made.
        context: with samples and the recipe.
        count: number of samples to compare on, at most.

    Returns:
        For each draw the mean divergence KL(original || rounded) in nats over the answer tokens.

    Raises:
        ValueError: no sample has an answer.
    """
    prompts = [p for p in context.prompts(reader.folder) if p.answer_tokens][:count]
    if not prompts:
        raise ValueError(
            "rotate: seeds needs calibration samples with answers, and there are none; give "
            "some with --calib, or set seeds = 1"
        )
    original = answer_scores(reader.folder, prompts, context)
    results = []
    for number, draw in enumerate(draws):
        context.update(number, len(draws), f"draw {number + 1} of {len(draws)}")
        with TemporaryDirectory(prefix=".draw.", dir=near) as name:
            rounded = _rounded(draw, config, reader, Path(name), context, prompts)
            scores = answer_scores(rounded, prompts, context)
        kl = torch.cat([_kl(p, q) for p, q in zip(original, scores, strict=True)])
        results.append(float(kl.mean()))
    return results


def rounding_recipe(recipe: Recipe) -> Recipe:
    """Return the recipe that rounds every layer by the scheme of its step, and does no more."""
    steps = tuple(
        RTNStep(scheme=step.scheme, targets=step.targets, ignore=step.ignore)
        if isinstance(step.scheme, GridScheme)
        else step
        for step in recipe.steps
    )
    return replace(
        recipe,
        steps=steps,
        preparations=(),
        transforms=(),
        kv_cache=None,
        vision_input=VisionInput(),
        calibration=Calibration(seed=recipe.calibration.seed),
    )


def _rounded(
    draw: Folding,
    config: ModelConfig,
    reader: CheckpointReader,
    folder: Path,
    context: Context,
    prompts: Sequence[Prompt],
) -> Path:
    """Write the rounded checkpoint of a draw; returns its folder inside `folder`."""
    rotated, rounded = folder / "rotated", folder / "rounded"
    rotated.mkdir()
    rounded.mkdir()
    rewrite_checkpoint(reader, rotated, draw.change, config=config.raw)
    recipe = rounding_recipe(context.recipe)
    carried = CarriedTensors.of(config, CheckpointReader(rotated))
    plan = make_plan(config, recipe, carried=carried, folder=rotated)
    settings = context.settings
    samples = prompts if recipe.needs_calibration else ()
    quantizer = BlockwiseQuantizer(rotated, recipe, plan, samples, settings.device, settings.dtype)
    journal = Journal(folder / "work")
    report = quantizer.quantize(journal)
    save_finished(journal.tensors(), report, rotated, rounded)
    return rounded


@torch.no_grad()
def answer_scores(folder: Path, prompts: Sequence[Prompt], context: Context) -> list[Tensor]:
    """Compute log-probabilities of answers, with one block of the checkpoint in memory at a time.

    Args:
        folder: of a checkpoint, quantized or float.
        prompts: each with answer tokens.
        context: its settings.

    Returns:
        For each prompt, the scores at which its answer tokens are predicted, float32
        `[answer tokens, vocab]`, on the CPU.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    blocks = open_blocks(folder, context.settings.device, context.settings.dtype)
    model, store = blocks.model, MemoryActivationStore()
    runner = BlockRunner(model, prompts, blocks, store)
    family, config = family_of(model.config), model.config
    tower = [block for stage in family.tower for block in stage.blocks(config)]
    decoder = family.decoder.blocks(config)
    run_blocks(runner, [*tower, *decoder] if runner.samples(tower[0]) else decoder)
    last = decoder[-1]
    runner.enter(last)
    hidden = []
    with hold_block(blocks, last):
        for sample, prompt in enumerate(prompts):
            output = runner.output(last, sample)
            hidden.append(output[:, -prompt.answer_tokens - 1 : -1])
            store.drop(last, sample)
    with hold_head(runner):
        logits = (model.logits(model.model.finish({"hidden": rows}))[0] for rows in hidden)
        return [values.float().log_softmax(-1).cpu() for values in logits]


def _kl(original: Tensor, other: Tensor) -> Tensor:
    """KL divergence of each row of log-probabilities, `[n, vocab]` to `[n]`."""
    return (original.exp() * (original - other)).sum(-1)
