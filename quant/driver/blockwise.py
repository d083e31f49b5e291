"""Quantize a checkpoint block by block, from its folder into another.

Peak memory follows the largest block and what solving it takes, never the model: a block is read,
calibrated, quantized, written down and forgotten. What is done is kept (`work.py`), so a run that
was stopped goes on at the block where it was, and ends in the same bytes.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...calib.activation_store import loaded
from ...calib.block_runner import TokenWeightFn
from ...calib.disk_activation_store import DiskActivationStore
from ...calib.sequential import BlockResult, Resume
from ...calib.token_weights import TokenWeights, UniformTokenWeights, find_token_weights
from ...common.distributed import (
    SINGLE_PROCESS,
    Communicator,
    broadcast_result,
    rank_zero_first,
    wait,
)
from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ...model.families import family_of
from ...model.loading import (
    build_model,
    check_tensors,
    check_tied_head,
    choose_device,
    choose_dtype,
    load_model,
)
from ...model.processing.inputs import Prompt
from ...model.qwen_vl import QwenVL
from ..checkpoint.formats import choose_format
from ..checkpoint.saving import Originals
from ..plan.coverage import check_pictures
from ..plan.plan import Plan
from ..recipe.recipe import Recipe
from ..runtime.kernel_selection import speed_layers_
from ..targets import quantized_layers
from .checkpoint_blocks import CheckpointBlocks
from .journal import Journal
from .layer_solver import Progress, QuantizationRun
from .padding import pad_model_
from .report import CalibrationRecord, LayerReport, QuantReport, TransformReport


@dataclass(frozen=True)
class BlockwiseQuantizer:
    """A checkpoint to be quantized from its folder."""

    source: Path
    recipe: Recipe
    plan: Plan
    """Of the recipe and the source's config."""
    prompts: Sequence[Prompt] = ()
    """Calibration samples with their answers."""
    device: str | torch.device = "auto"
    dtype: str | torch.dtype = "auto"
    """Of the computation; auto takes what the checkpoint says."""
    memory: int = 0
    """Bytes of activations that are kept in memory; all of them are in files too."""
    comm: Communicator = SINGLE_PROCESS
    """Who shares the work, each with the same source and the same folder of unfinished work."""

    def quantize(self, work: Journal, on_progress: Progress | None = None) -> QuantReport:
        """Do what is not done yet; all layers lie in `work` then.

        Raises:
            ValueError: as `quantize_`, or the checkpoint is damaged.
        """
        if self.recipe.needs_calibration:
            pictures = any(prompt.visuals for prompt in self.prompts)
            check_pictures(self.plan, present=not self.prompts or pictures)
        reader, device = CheckpointReader(self.source), choose_device(self.device)
        model = self._without_weights(reader)
        run = QuantizationRun(model, self.recipe, self.plan, device, on_progress, self.comm)
        blocks = CheckpointBlocks(reader, model, self.plan.padding, device)
        restore(run, work.records)
        going = _Pass(self, reader, run, blocks, work)
        going.round()
        record = None
        if self.recipe.needs_calibration:
            weights = self._token_weights(run)
            record = CalibrationRecord.of(self.prompts, weights)
            going.calibrate(weights)
        return run.report(record)

    def _without_weights(self, reader: CheckpointReader) -> QwenVL:
        """The model on `meta`, padded."""
        config = ModelConfig.from_folder(self.source)
        model = build_model(config, dtype=choose_dtype(self.dtype, config, reader))
        check_tensors(reader, model)
        check_tied_head(reader, model)
        pad_model_(model, self.plan.padding)
        return model

    def _token_weights(self, run: QuantizationRun) -> TokenWeights | UniformTokenWeights:
        model = run.model
        if self.recipe.needs_gradient:
            # The one thing that needs the whole model, for as long as it takes.
            run.on_progress(len(run.layers), len(run.rows), "token weights by gradient")
            model = load_model(self.source, device=run.device, dtype=model.dtype)
            speed_layers_(model, run.device)
        return find_token_weights(self.recipe.calibration.token_weights, model, self.prompts)


@dataclass(frozen=True)
class _Pass:
    """A way through the model, or the rest of one."""

    streaming: BlockwiseQuantizer
    reader: CheckpointReader
    run: QuantizationRun
    blocks: CheckpointBlocks
    work: Journal

    def round(self) -> None:
        """Quantize the layers that no sample reaches."""
        run = self.run
        seen = run.seen(self.streaming.prompts)
        rows = [row for row in run.rows.values() if row not in seen and row.name not in run.layers]
        for stage in family_of(run.model.config).stages:
            for block in stage.blocks(run.model.config):
                if here := [row for row in rows if is_inside(row.name, block)]:
                    with loaded(self.blocks, block):
                        run.round(here)
                        self._write_down(BlockResult(block, None, ()), calibrated=False)

    def calibrate(self, weights: TokenWeightFn) -> None:
        """Run the samples through what they have not passed yet."""
        last: Mapping[str, Any] = {"calibrated": False, "waiting": ()}
        if self.work.records:
            last = self.work.records[-1]
        comm = self.streaming.comm
        states = DiskActivationStore(self.work.states, self.run.device, self.streaming.memory)
        with closing(states) as store:
            broadcast_result(comm, lambda: store.keep(last["waiting"]))
            resume = None
            if last["calibrated"]:
                if last["next"] is None:
                    return
                resume = Resume(last["next"], frozenset(last["parted"]))

            def leave(passed: BlockResult) -> None:
                wait(comm)  # the states of all processes must be there before the journal says so
                self._write_down(passed, calibrated=True)
                broadcast_result(comm, lambda: store.keep(passed.waiting))

            where = {"blocks": self.blocks, "store": store, "resume": resume}
            self.run.calibrate(self.streaming.prompts, weights, leave=leave, **where)

    def _write_down(self, passed: BlockResult, *, calibrated: bool) -> None:
        """Take a block for done, while its weights are still there."""
        run, block, following = self.run, passed.block, passed.following
        layers = {
            f"{block}.{name}" if name else block: layer
            for name, layer in quantized_layers(run.model.get_submodule(block)).items()
        }
        changed = sorted(name for name in run.transforms.changed if is_inside(name, block))
        transforms = [row for row in run.transforms.reports if row.planned.block == block]
        format = choose_format(run.plan.contents, run.plan.format)
        originals = Originals(run.model, layers, self.reader, changed, run.plan.padding, format)
        record = {
            "block": block,
            "calibrated": calibrated,
            "next": following.block if following else None,
            "parted": sorted(following.parted) if following else [],
            "waiting": list(passed.waiting),
            "layers": [run.layers[name].to_dict() for name in layers],
            "transforms": [row.to_dict() for row in transforms],
            "changed": changed,
        }
        rank_zero_first(
            self.streaming.comm,
            lambda: self.work.add(record, originals.all() if self.work.writes else {}),
        )


def restore(run: QuantizationRun, records: Sequence[Mapping[str, Any]]) -> None:
    """Tell a run what was written down before."""
    planned = list(run.plan.transforms)
    for record in records:
        for layer in record["layers"]:
            run.layers[layer["name"]] = LayerReport.from_dict(layer, run.rows[layer["name"]])
        for done in record["transforms"]:
            row = next(row for row in planned if row.to_dict().items() <= done.items())
            planned.remove(row)
            run.transforms.reports.append(TransformReport.from_dict(done, row))
        run.transforms.changed.update(record["changed"])


def is_inside(name: str, block: str) -> bool:
    """Whether a tensor or module is a block's or the block itself."""
    return name == block or name.startswith(block + ".")
