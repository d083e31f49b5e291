"""Write a checkpoint whose MLPs have fewer channels.

Each block is measured on the outputs of the blocks before it after they became narrower. Removed
are the channels of least score (`methods/shrink/channels.py`); the rest of the last layer is
refitted (`methods/shrink/refit.py`), rows and biases of the layers before it are selected.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ....calib.sequential import CalibrationBlock
from ....common.lazy_tensor import LazyTensor, TensorLike
from ....common.safetensors_writer import write_tensors
from ....model.checkpoint import CheckpointReader, lazy_tensors
from ....model.config import ModelConfig
from ....model.families import LinearSpec, family_of
from ....model.qwen_vl import QwenVL
from ...methods.layer_error import row_energy
from ...methods.shrink.channels import channel_scores, choose_channels
from ...methods.shrink.refit import refit, scattered
from ...recipe.ranges import ChannelScore
from ...steps.shrink import ShrinkStep
from ..context import Context
from ..rewriting import rewrite_checkpoint
from .sample_pass import SamplePass
from .widths import NarrowedWidth, choose_widths, narrowed_config


def narrow_checkpoint(
    source: Path, destination: Path, step: ShrinkStep, context: Context
) -> dict[str, Any]:
    """Write the narrower checkpoint, see `Preparation.prepare`.

    Returns:
        The widths, and for each block the relative squared error of the MLP's output over the
        samples, as removed and as written; only if samples were needed.
    """
    config = ModelConfig.from_folder(source)
    chosen = choose_widths(config, step)
    narrower = tuple(width for width in chosen if width.after < width.before)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".shrink-") as name:
        run = _Narrowing(CheckpointReader(source), config, step, Path(name))
        if narrower and step.uses_samples:
            run.measured(SamplePass.open(source, context), narrower, context)
        else:
            run.unmeasured(narrower)
        run.carried(narrower)
        rewrite_checkpoint(
            run.reader,
            destination,
            run.change,
            config=narrowed_config(config, chosen).raw,
            update=context.update,
        )
    return {"widths": [width.to_dict() for width in chosen], "blocks": run.records}


@dataclass
class _Narrowing:
    """The narrower blocks so far, which wait in files until the checkpoint is written."""

    reader: CheckpointReader
    config: ModelConfig
    step: ShrinkStep
    scratch: Path
    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    records: list[dict[str, Any]] = field(default_factory=list)

    def measured(
        self, samples: SamplePass, chosen: tuple[NarrowedWidth, ...], context: Context
    ) -> None:
        """Narrow all blocks while the samples run through them."""
        widths = {
            f"{path}.{width.down}": width
            for width in chosen
            for path in width.stage.blocks(self.config)
        }
        specs = [s for s in family_of(self.config).linears(self.config) if s.name in widths]

        def visit(block: CalibrationBlock) -> None:
            for statistics in block.statistics():
                (spec,) = statistics.group.linears
                context.update(len(self.records), len(specs), spec.name)
                hessian = statistics.hessian
                if not math.isfinite(hessian.input_range.largest):
                    raise ValueError(
                        f"the input of {spec.name} is not finite for a calibration sample: "
                        "calibrate in bf16 or fp32, or look at the samples"
                    )
                new = self._narrow(widths[spec.name], spec, hessian.values, hessian.tokens)
                put_tensors_(samples.model, new)

        samples.run(specs, self.scratch / "states", visit)

    def unmeasured(self, chosen: tuple[NarrowedWidth, ...]) -> None:
        """Narrow all blocks by their weights alone."""
        for spec in family_of(self.config).linears(self.config):
            for width in chosen:
                if spec.stage == width.stage.name and spec.name.endswith(f".{width.down}"):
                    self._narrow(width, spec)

    def carried(self, chosen: tuple[NarrowedWidth, ...]) -> None:
        """Narrow the module for multi-token prediction, which no sample passes, by magnitude."""
        score: ChannelScore = "random" if self.step.score == "random" else "magnitude"
        for width in chosen:
            for blocks, index in width.carried(self.config):
                path = blocks.block_path(index)
                members = dict(blocks.width_tensors(self.config, index, width.width))
                down = f"{path}.{width.down}.weight"
                if down not in self.reader:
                    continue
                weight = self.reader.tensor(down)
                kept = choose_channels(
                    channel_scores(weight, score, seed=f"{self.step.seed} {path}"), width.after
                )
                self._keep(members, kept, {})
                self.records.append({"block": path, "score": score, "refit": False})

    def change(self, name: str, tensor: LazyTensor) -> Mapping[str, TensorLike]:
        """Return the new tensor in the place of one of the source, see `rewriting.Change`."""
        return {name: self.tensors.get(name, tensor)}

    def _narrow(
        self,
        width: NarrowedWidth,
        spec: LinearSpec,
        hessian: Tensor | None = None,
        tokens: int = 0,
    ) -> dict[str, Tensor]:
        """Narrow the MLP of a block, and return its new tensors.

        Args:
            width: of the stage.
            spec: the last layer of the MLP.
            hessian: `[K, K]` of its input; None without samples.
            tokens: that the Hessian was measured on.
        """
        step, down = self.step, f"{spec.name}.weight"
        path = width.stage.block_path(spec.block)
        members = width.tensors(self.config, spec.block)
        weight = self.reader.tensor(down)
        if hessian is not None:
            weight = weight.to(hessian.device)
        energies = None if hessian is None else hessian.diagonal()
        assert step.score is not None
        assert step.score != "influence"
        scores = channel_scores(weight, step.score, energies=energies, seed=f"{step.seed} {path}")
        kept = choose_channels(scores, width.after)
        columns = weight[:, kept]
        record: dict[str, Any] = {"block": path, "score": step.score, "refit": bool(step.refit)}
        if hessian is not None:
            removed = _energy(weight, columns, kept, hessian)
            if step.refit:
                columns = self._refitted(spec, weight, hessian, kept)
            outputs = float(row_energy(weight.float(), hessian).sum())
            remaining = _energy(weight, columns, kept, hessian) if step.refit else removed
            record |= {
                "tokens": tokens,
                "removed_error": removed / outputs if outputs else 0.0,
                "error": remaining / outputs if outputs else 0.0,
            }
        self.records.append(record)
        return self._keep(members, kept, {down: columns.contiguous().cpu()})

    def _refitted(self, spec: LinearSpec, weight: Tensor, hessian: Tensor, kept: Tensor) -> Tensor:
        """Refit the columns of a layer that stay, in the dtype of its weight."""
        assert self.step.damp_percent is not None
        try:
            columns = refit(weight, hessian, kept, damp_percent=self.step.damp_percent)
        except ValueError as error:
            raise ValueError(f"{spec.name}: {error}") from None
        return columns.to(weight.dtype)

    def _keep(
        self, members: Mapping[str, int], kept: Tensor, solved: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Select channels of the tensors of a block that are not solved, and store all of them."""
        kept = kept.cpu()
        new = {
            name: solved[name]
            if name in solved
            else self.reader.tensor(name).index_select(dim, kept).contiguous()
            for name, dim in members.items()
        }
        path = self.scratch / f"{len(self.records):05d}-{len(self.tensors)}.safetensors"
        write_tensors(new, path)
        self.tensors |= lazy_tensors(path)
        return new


def put_tensors_(model: QwenVL, tensors: Mapping[str, Tensor]) -> None:
    """Replace parameters of linear layers by those of other sizes, in place."""
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        linear = model.get_submodule(owner)
        before = getattr(linear, leaf)
        setattr(linear, leaf, nn.Parameter(tensor.to(before), requires_grad=False))
        if isinstance(linear, nn.Linear):
            linear.out_features, linear.in_features = linear.weight.shape


def _energy(weight: Tensor, columns: Tensor, kept: Tensor, hessian: Tensor) -> float:
    """Mean squared error of the outputs with some columns in the place of all."""
    candidate = scattered(columns.float(), kept, weight.shape[1])
    return float(row_energy(weight.float() - candidate, hessian).sum())
