"""Quantize a checkpoint block by block, from its folder into a journal.

Peak memory follows the largest block and its solver, not the model: each block is loaded,
calibrated, quantized, written to the journal and released. An interrupted run resumes at the first
block without a journal entry and ends in the same bytes.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ...calib.activation_store import hold_block
from ...calib.block_runner import TokenWeightFn
from ...calib.disk_activation_store import DiskActivationStore
from ...calib.sequential import BlockResult, Resume
from ...calib.token_weights import ModalityTokenWeights, PerTokenWeights, find_token_weights
from ...common.distributed import (
    SINGLE_PROCESS,
    Communicator,
    barrier,
    broadcast_result,
    rank_zero_first,
)
from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ...model.families import EMBEDDING, family_of
from ...model.loading import (
    build_model,
    check_tensors,
    check_tied_head,
    choose_device,
    choose_dtype,
    load_model,
)
from ...model.mtp import MultiTokenPredictor
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ...model.token_reduction.rule import ReductionRule
from ...model.untying import open_source
from ..checkpoint.formats.table import choose_format
from ..checkpoint.saving import encode_tensors
from ..plan.plan import Plan, check_images
from ..recipe.recipe import Recipe
from ..runtime.kernel_selection import accelerate_layers_
from .checkpoint_blocks import CheckpointBlocks
from .journal import Journal
from .kv_calibration import CalibratedLayer
from .layer_solver import Progress, QuantizationRun
from .report import CalibrationRecord, LayerReport, QuantReport, TransformReport
from .rounding import TunedBlock
from .visual_tokens import load_tower, reduce_prompts


@dataclass(frozen=True)
class BlockwiseQuantizer:
    """Quantization of a checkpoint that is never in memory as a whole."""

    source: Path
    recipe: Recipe
    plan: Plan
    """Of the recipe and the source's config."""
    prompts: Sequence[Prompt] = ()
    """Calibration samples with their answers."""
    device: str | torch.device = "auto"
    dtype: str | torch.dtype = "auto"
    """Of the computation; auto takes the checkpoint's."""
    memory: int = 0
    """Bytes of activations that are cached in memory; all of them are stored in files too."""
    comm: Communicator = SINGLE_PROCESS
    """Processes that share the work, with the same source and the same journal folder."""

    def quantize(self, journal: Journal, on_progress: Progress | None = None) -> QuantReport:
        """Quantize the blocks that are not in the journal yet.

        Raises:
            ValueError: as `quantize_`, or the checkpoint is damaged.
        """
        if self.recipe.needs_calibration:
            has_images = any(prompt.visuals for prompt in self.prompts)
            check_images(self.plan, present=not self.prompts or has_images)
            rule = self.recipe.vision_input.reduction
            if rule is not None and has_images:
                return self._with_reduced_prompts(rule)._quantize(journal, on_progress)
        return self._quantize(journal, on_progress)

    def _with_reduced_prompts(self, rule: ReductionRule) -> "BlockwiseQuantizer":
        tower = load_tower(self.source, choose_device(self.device), self.dtype)
        return replace(self, prompts=reduce_prompts(tower, rule, self.prompts, self.comm))

    def _quantize(self, journal: Journal, on_progress: Progress | None) -> QuantReport:
        reader = open_source(self.source, untied=self.plan.untied)
        device = choose_device(self.device)
        model = self._model_without_weights()
        run = QuantizationRun(model, self.recipe, self.plan, device, on_progress, self.comm)
        blocks = CheckpointBlocks(reader, model, self.plan.padding, device)
        restore_run(run, journal.records)
        steps = _Pass(self, reader, run, blocks, journal)
        steps.round_unreached_layers()
        record = None
        if self.recipe.needs_calibration:
            weights = self._token_weights(run)
            record = CalibrationRecord.of(self.prompts, weights)
            steps.calibrate(weights)
        return run.report(record)

    def _model_without_weights(self) -> QwenVL:
        """Check the source, and build the model of the plan on `meta`."""
        config = ModelConfig.from_folder(self.source)
        reader = CheckpointReader(self.source)
        model = build_model(config, dtype=choose_dtype(self.dtype, config, reader))
        check_tensors(reader, model)
        check_tied_head(reader, model)
        self.plan.prepare_model_(model)
        if self.plan.contents.quantizes_carried:
            with torch.device("meta"):
                model.mtp = MultiTokenPredictor(model.config.text).to(model.dtype)
        return model

    def _token_weights(self, run: QuantizationRun) -> ModalityTokenWeights | PerTokenWeights:
        model = run.model
        if self.recipe.needs_gradient:
            # Gradients need the whole model in memory; it is freed before calibration starts.
            run.show_progress("token weights by gradient")
            model = load_model(self.source, device=run.device, dtype=model.dtype)
            accelerate_layers_(model, run.device)
        return find_token_weights(self.recipe.calibration.token_weights, model, self.prompts)


@dataclass(frozen=True)
class _Pass:
    """One pass over the blocks, or the rest of an interrupted one."""

    quantizer: BlockwiseQuantizer
    reader: CheckpointReader
    run: QuantizationRun
    blocks: CheckpointBlocks
    journal: Journal

    def round_unreached_layers(self) -> None:
        """Quantize the layers that no calibration sample reaches."""
        run = self.run
        calibrated = run.calibrated_rows(self.quantizer.prompts)
        rows = [
            row
            for row in run.rows.values()
            if row not in calibrated and row.name not in run.layer_reports
        ]
        family = family_of(run.model.config)
        stages = (*family.stages, *family.carried)
        blocks = [block for stage in stages for block in stage.blocks(run.model.config)]
        for block in (EMBEDDING, *blocks):
            if block_rows := [row for row in rows if is_inside(row.name, block)]:
                with hold_block(self.blocks, block):
                    run.round_layers(block_rows)
                    self._commit(BlockResult(block, None, ()), calibrated=False)

    def calibrate(self, weights: TokenWeightFn) -> None:
        """Run the samples through the blocks that they have not passed yet."""
        last: Mapping[str, Any] = {"calibrated": False, "waiting": ()}
        if self.journal.records:
            last = self.journal.records[-1]
        comm, embedding = self.quantizer.comm, self.run.rows.get(EMBEDDING)
        blocks = replace(self.blocks, embedding=embedding.step if embedding else None)
        states = DiskActivationStore(self.journal.states, self.run.device, self.quantizer.memory)
        with closing(states) as store:
            # Activations of an uncommitted block, and of blocks before the last one, are removed.
            broadcast_result(comm, partial(store.keep, last["waiting"]))
            resume = None
            if last["calibrated"]:
                if last["next"] is None:
                    return
                resume = Resume(last["next"], frozenset(last["parted"]))

            for block in self.run.calibration_pass(
                self.quantizer.prompts, weights, blocks=blocks, store=store, resume=resume
            ):
                with block.loaded():
                    result = self.run.quantize_block(block)
                    # The order makes it safe to be killed at any point: the outputs of all ranks
                    # are on disk, then the journal commits the block, then its inputs are removed.
                    barrier(comm)
                    self._commit(result, calibrated=True)
                    broadcast_result(comm, partial(store.keep, result.pending_keys))

    def _commit(self, result: BlockResult, *, calibrated: bool) -> None:
        """Write a block's tensors and its record to the journal, while its weights are loaded."""
        run, block, following = self.run, result.block, result.following
        changed = sorted(name for name in run.transforms.changed if is_inside(name, block))
        transforms = [row for row in run.transforms.reports if row.planned.block == block]
        record = {
            "block": block,
            "calibrated": calibrated,
            "next": following.block if following else None,
            "parted": sorted(following.diverged) if following else [],
            "waiting": list(result.pending_keys),
            "layers": [run.layer_reports[name].to_dict() for name in run.solved],
            "transforms": [row.to_dict() for row in transforms],
            "changed": changed,
        }
        if block in run.tuned:
            record["rounding"] = run.tuned[block].to_dict()
        if run.measured is not None:
            record["kv_cache"] = run.measured.to_dict()
        rank_zero_first(
            self.quantizer.comm,
            lambda: self.journal.add(record, self._tensors(changed) if self.journal.writes else {}),
        )
        run.solved.clear()
        run.measured = None

    def _tensors(self, changed: Sequence[str]) -> dict[str, torch.Tensor]:
        """Encode the solved layers, and collect the float tensors that transforms changed."""
        run = self.run
        format = choose_format(run.plan.contents, run.plan.format)
        return encode_tensors(run.solved, changed, run.model, self.reader, format)


def restore_run(run: QuantizationRun, records: Sequence[Mapping[str, Any]]) -> None:
    """Restore the reports of a run from the journal."""
    planned = list(run.plan.transforms)
    for record in records:
        for layer in record["layers"]:
            run.layer_reports[layer["name"]] = LayerReport.from_dict(layer, run.rows[layer["name"]])
        for transform in record["transforms"]:
            row = next(row for row in planned if row.to_dict().items() <= transform.items())
            planned.remove(row)
            run.transforms.reports.append(TransformReport.from_dict(transform, row))
        run.transforms.changed.update(record["changed"])
        if tuned := record.get("rounding"):
            run.tuned[record["block"]] = TunedBlock.from_dict(tuned)
        if calibrated := record.get("kv_cache"):
            of_layer = CalibratedLayer.from_dict(calibrated)
            run.cache_layers[of_layer.range.layer] = of_layer


def is_inside(name: str, block: str) -> bool:
    """Whether a tensor or module is the block or inside it."""
    return name == block or name.startswith(block + ".")
