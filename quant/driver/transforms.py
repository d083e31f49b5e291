"""Run SmoothQuant and AWQ on a block before its layers are quantized.

The formulas are in `smoothquant.py`, `awq.py` and `channel_scaling.py`. Here samples are run, the
scales are folded into the model, and the decisions are reported. Folding leaves the float function
of the block as it is, so other blocks are not affected.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from ...calib.observers import AbsMax, Hessian, MeanAbs
from ...calib.sequential import CalibrationBlock
from ...calib.tap_groups import TapGroup, tap_groups
from ...model.qwen_vl import QwenVL
from ..kernels.bf16_linear import select_syrk
from ..methods.affine import choose_input_scale
from ..methods.awq import awq_scales
from ..methods.channel_scaling import (
    channel_index,
    count_channels,
    reader_names,
    reduce_columns,
    rescale_,
    source_names,
)
from ..methods.rtn import rtn
from ..methods.smoothquant import ALPHAS, smooth_scales, weight_absmax
from ..plan.channel_groups import PlannedTransform
from ..plan.plan import Plan
from ..recipe.steps import AWQStep, SmoothQuantStep
from ..targets import put_module, put_quantized, weight_of
from .report import TransformReport

SEARCH_SAMPLES = 32
"""Largest number of samples that an alpha is judged on, spread over the calibration set."""
SEARCH_SHARE = 0.25
"""Largest fraction of the calibration set that an alpha is judged on."""


class BlockTransforms:
    """The transforms of a plan, run block by block."""

    def __init__(self, model: QwenVL, plan: Plan, device: torch.device) -> None:
        self.model, self.device = model, device
        self.rows = {row.name: row for row in plan.quantized}
        self.planned = plan.transforms
        self.reports: list[TransformReport] = []
        """One per planned transform, in the order in which they ran."""
        self.changed: set[str] = set()
        """Names of rescaled tensors that stay in float: the checkpoint needs their new values."""
        self.clipped: set[str] = set()
        """Names of layers whose scales are searched if they are rounded."""

    def prepare(self, block: CalibrationBlock) -> list[TransformReport]:
        """Run the transforms of a block, in the order of the recipe.

        Returns:
            Their reports, which are appended to `reports` too.

        Raises:
            ValueError: no sample reaches the block, or its inputs overflow.
        """
        planned = [row for row in self.planned if row.block == block.path]
        before = len(self.reports)
        for transform, group in groupby(planned, key=lambda row: row.transform):
            rows = list(group)
            active = [row for row in rows if not row.reason]
            if active and isinstance(transform, SmoothQuantStep):
                self._smoothquant(block, transform, active)
            for row in active:
                if isinstance(transform, AWQStep):
                    self._awq(block, transform, row)
            self.reports += [TransformReport(row) for row in rows if row.reason]
        return self.reports[before:]

    def _smoothquant(
        self, block: CalibrationBlock, step: SmoothQuantStep, rows: Sequence[PlannedTransform]
    ) -> None:
        """Smooth the channel groups of a block, with fixed or searched alphas."""
        alphas: Sequence[float | None]
        error: float | None = None
        plain_error: float | None = None
        held_out, others = _split(block.samples)
        absmax = self._absmax(block, others)
        if isinstance(step.alpha, str):
            alphas, error, plain_error = self._search_alphas(
                block, rows, absmax, held_out or others
            )
        else:
            alphas = [step.alpha] * len(rows)
        if held_out:
            # The final ranges are those of all samples.
            held_out_absmax = self._absmax(block, held_out)
            absmax = {tap: torch.maximum(absmax[tap], held_out_absmax[tap]) for tap in absmax}
        for row, alpha in zip(rows, alphas, strict=True):
            scales = None
            if alpha is not None:
                scales = self._smooth(row, alpha, absmax)
                self._record_changed(row)
            self.reports.append(TransformReport(row, alpha, scales, error, plain_error))

    def _search_alphas(
        self,
        block: CalibrationBlock,
        rows: Sequence[PlannedTransform],
        absmax: Mapping[str, Tensor],
        samples: Sequence[int],
    ) -> tuple[list[float | None], float, float]:
        """Search the alpha of each channel group of a block.

        All combinations would be too many. First one alpha for all groups is chosen; then each
        group in turn takes another one if that lowers the error (one pass of coordinate descent).

        Args:
            block: not transformed yet.
            rows: its channel groups.
            absmax: ranges of the inputs, by tap.
            samples: to measure the error on.

        Returns:
            The alphas (None = no smoothing), the relative squared error of the block's output with
            them, and the error without smoothing.
        """
        expected = {sample: block.output(sample) for sample in block.local_samples(samples)}

        def measure(alphas: Sequence[float | None]) -> float:
            with self._trial(block.path, rows):
                inputs = dict(absmax)
                for row, alpha in zip(rows, alphas, strict=True):
                    if alpha is not None:
                        self._smooth(row, alpha, inputs)
                self._fake_quantize(block.path, inputs)
                return _output_error(block, samples, expected)

        grid: tuple[float | None, ...] = (None, *ALPHAS)
        errors = [measure([alpha] * len(rows)) for alpha in grid]
        error = min(errors)
        common = grid[errors.index(error)]
        alphas = [common] * len(rows)
        for position in range(len(rows) if len(rows) > 1 else 0):
            for alpha in grid:
                if alpha != common:
                    candidate = [*alphas[:position], alpha, *alphas[position + 1 :]]
                    if (candidate_error := measure(candidate)) < error:
                        alphas, error = candidate, candidate_error
        return alphas, error, errors[0]

    def _smooth(self, row: PlannedTransform, alpha: float, absmax: dict[str, Tensor]) -> Tensor:
        """Smooth one channel group and update `absmax` (by tap, per column); returns the scales."""
        tap, index, channels = self._input_of(row)
        act_scales = reduce_columns(absmax[tap], index, channels, "amax")
        weights = [weight_of(self.model, self.rows[name].spec) for name in self._quantized(row)]
        weight_scales = reduce_columns(weight_absmax(weights), index, channels, "amax")
        try:
            scales = self._fold(row, smooth_scales(act_scales, weight_scales, alpha))
        except ValueError as error:
            raise ValueError(f"{row.source}: {error}") from None
        absmax[tap] = absmax[tap] / scales[index.to(scales.device)]
        return scales

    def _awq(self, block: CalibrationBlock, step: AWQStep, row: PlannedTransform) -> None:
        """Scale one channel group by AWQ, if that lowers the error of its layers."""
        _, index, channels = self._input_of(row)
        names = self._quantized(row)
        spec, planned = self.rows[names[0]].spec, self.rows[names[0]].step
        assert planned is not None
        is_rounded = planned.method == "rtn"
        device = self.device
        observers = block.observe(
            lambda: {
                spec.name: [
                    Hessian(spec.in_features, device, select_syrk(device)),
                    MeanAbs(spec.in_features, device),
                ]
            }
        )
        hessian, magnitudes = observers[spec.name]
        assert isinstance(hessian, Hessian) and isinstance(magnitudes, MeanAbs)
        try:
            best = awq_scales(
                [weight_of(self.model, self.rows[name].spec) for name in names],
                hessian.values,
                reduce_columns(magnitudes.values, index, channels, "mean"),
                planned.scheme,
                index=index,
                points=step.points,
                # A solver searches its own scales, which are never negative.
                clip=step.clip and is_rounded,
                signed=None if is_rounded else False,
            )
        except ValueError as error:
            raise ValueError(f"{row.source}: {error}") from None
        scales = None
        if best.error < best.rtn_error:
            scales = self._fold(row, best.scales)
            self._record_changed(row)
        if step.clip:
            self.clipped.update(names)
        ratio = None if scales is None else best.ratio
        self.reports.append(
            TransformReport(row, ratio, scales, best.error, best.rtn_error, best.balanced)
        )

    def _fold(self, row: PlannedTransform, scales: Tensor) -> Tensor:
        """Divide a source by `scales`; returns the scales that its readers were multiplied by."""
        tensors = self._tensors(row.block)
        stored = {}
        if self.model.config.dtype is not None:
            # The checkpoint stores these in its own dtype: calibrate on the values it will hold.
            stored = dict.fromkeys(self._float_tensors(row, tensors), self.model.config.dtype)
        factors = rescale_(
            tensors, row.block, row.channel_group, 1 / scales, self.model.config, stored=stored
        )
        return 1 / factors

    def _tensors(self, block: str) -> dict[str, Tensor]:
        """Return the parameters of a block by full name."""
        parameters = self.model.get_submodule(block).named_parameters(prefix=block)
        return {name: parameter.data for name, parameter in parameters}

    def _float_tensors(self, row: PlannedTransform, tensors: Mapping[str, Tensor]) -> list[str]:
        """List the scaled tensors that the checkpoint holds in float."""
        names = source_names(tensors, row.block, row.channel_group)
        names += reader_names(row.block, row.channel_group)
        return [name for name in names if name.removesuffix(".weight") not in self.rows]

    def _record_changed(self, row: PlannedTransform) -> None:
        self.changed.update(self._float_tensors(row, self._tensors(row.block)))

    def _quantized(self, row: PlannedTransform) -> list[str]:
        """List the readers that a step quantizes."""
        return [name for name in row.linears if name in self.rows]

    def _input_of(self, row: PlannedTransform) -> tuple[str, Tensor, int]:
        """Return the tap of the readers, the channel of each input column, and their number."""
        channels = count_channels(self._tensors(row.block), row.block, row.channel_group)
        tap = self.rows[self._quantized(row)[0]].spec.tap
        index = channel_index(row.channel_group, channels, self.model.config)
        return tap, index.to(self.device), channels

    def _groups(self, block: str) -> list[TapGroup]:
        return tap_groups([row.spec for row in self.rows.values()], block)

    def _absmax(self, block: CalibrationBlock, samples: Sequence[int]) -> dict[str, Tensor]:
        """Measure the largest magnitude per column of each input of quantized layers, by tap."""
        groups = self._groups(block.path)

        def make() -> dict[str, list[AbsMax]]:
            return {g.linears[0].name: [AbsMax(g.in_features, self.device)] for g in groups}

        observers = block.observe(make, samples)
        values = {}
        for group in groups:
            (observer,) = observers[group.linears[0].name]
            assert isinstance(observer, AbsMax)
            values[group.tap] = observer.values
        return values

    @contextmanager
    def _trial(self, block: str, rows: Sequence[PlannedTransform]) -> Iterator[None]:
        """Restore the weights and layers of a block on exit, also after an error."""
        tensors = self._tensors(block)
        touched = {
            name
            for row in rows
            for name in (
                *source_names(tensors, block, row.channel_group),
                *reader_names(block, row.channel_group),
            )
        }
        saved = {name: tensors[name].clone() for name in sorted(touched)}
        layers = {
            spec.name: self.model.get_submodule(spec.name)
            for group in self._groups(block)
            for spec in group.linears
        }
        try:
            yield
        finally:
            for name, layer in layers.items():
                put_module(self.model, name, layer)
            for name, value in saved.items():
                tensors[name].copy_(value)

    def _fake_quantize(self, block: str, absmax: Mapping[str, Tensor]) -> None:
        """Quantize the layers of a block by rounding: a solver would take far too long here."""
        for group in self._groups(block):
            for spec in group.linears:
                step = self.rows[spec.name].step
                assert step is not None
                weight = rtn(weight_of(self.model, spec), step.scheme)
                if step.scheme.activations == "static":
                    scale = choose_input_scale(float(absmax[group.tap].max()))
                    weight = replace(weight, input_scale=scale.to(self.device))
                put_quantized(self.model, spec, weight)


def _split(samples: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Split samples into those that judge alphas and those that give the ranges of the inputs.

    The two must be disjoint. No value of the samples that gave the range exceeds a static scale, so
    on them a large alpha, with which every channel fills the range, looks better than it is.
    """
    stride = max(round(1 / SEARCH_SHARE), -(-len(samples) // SEARCH_SAMPLES))
    held_out = samples[1::stride]
    return held_out, [sample for sample in samples if sample not in held_out]


def _output_error(
    block: CalibrationBlock, samples: Sequence[int], expected: Mapping[int, Tensor]
) -> float:
    """Compute the squared error of a block's outputs over their energy, with token weights.

    Args:
        block: with quantized layers.
        samples: to run.
        expected: float outputs of the samples that this rank runs.
    """

    def measure(sample: int) -> tuple[float, float]:
        rows = expected[sample].float().flatten(0, -2)
        error = (block.output(sample).float().flatten(0, -2) - rows).square().sum(dim=-1)
        energy = rows.square().sum(dim=-1)
        if (weights := block.token_weights(sample)) is not None:
            error, energy = error * weights.to(error), energy * weights.to(energy)
        return float(error.sum(dtype=torch.float64)), float(energy.sum(dtype=torch.float64))

    total_error = total_energy = 0.0
    for error, energy in block.evaluate(samples, measure):
        total_error, total_energy = total_error + error, total_energy + energy
    return total_error / total_energy if total_energy else 0.0
