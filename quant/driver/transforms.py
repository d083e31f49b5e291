"""Run SmoothQuant and AWQ over a block before its layers are quantized.

The formulas are in `smoothquant.py`, `awq.py` and `rescale.py`; here samples run, factors are
folded into the model, and what was done is written down. Folding leaves the float function as it
is, so no other block needs to know.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from ...calib.observers import AbsMax, Hessian, MeanAbs
from ...calib.sequential import BlockView, TapGroup, tap_groups
from ...model.qwen_vl import QwenVL
from ..kernels.bf16_linear import gram_on
from ..methods.affine import choose_input_scale
from ..methods.awq import awq_scales
from ..methods.channel_groups import PlannedTransform
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
from ..plan.plan import Plan
from ..recipe.steps import AWQStep, SmoothQuantStep
from ..targets import put_module, put_quantized, weight_of
from .report import TransformReport

SEARCH_SAMPLES = 32
SEARCH_SHARE = 0.25
"""An alpha is judged on so many samples, spread over the set, and on such a share of it at most."""


class BlockTransforms:
    """The transforms of a plan, block by block, and the record of them."""

    def __init__(self, model: QwenVL, plan: Plan, device: torch.device) -> None:
        self.model, self.device = model, device
        self.rows = {row.name: row for row in plan.quantized}
        self.planned = plan.transforms
        self.reports: list[TransformReport] = []
        self.changed: set[str] = set()
        """Tensors that took factors and stay in float."""
        self.clipped: set[str] = set()
        """Layers whose scales are to be searched if they are rounded."""

    def prepare(self, view: BlockView) -> list[TransformReport]:
        """Run the transforms of a block, in the order of the recipe.

        Raises:
            ValueError: no sample reaches the block, or its inputs overflow.
        """
        mine = [row for row in self.planned if row.block == view.path]
        done = len(self.reports)
        for transform, group in groupby(mine, key=lambda row: row.transform):
            rows = list(group)
            active = [row for row in rows if not row.reason]
            if active and isinstance(transform, SmoothQuantStep):
                self._smoothquant(view, transform, active)
            for row in active:
                if isinstance(transform, AWQStep):
                    self._awq(view, transform, row)
            self.reports += [TransformReport(row) for row in rows if row.reason]
        return self.reports[done:]

    def _smoothquant(
        self, view: BlockView, step: SmoothQuantStep, rows: Sequence[PlannedTransform]
    ) -> None:
        found: tuple[Sequence[float | None], float | None, float | None]
        judged, others = _split(view.samples)
        absmax = self._absmax(view, others)
        if isinstance(step.alpha, str):
            found = self._search_alphas(view, rows, absmax, judged or others)
        else:
            found = [step.alpha] * len(rows), None, None
        alphas, error, plain = found
        if judged:
            seen = self._absmax(view, judged)
            absmax = {tap: torch.maximum(absmax[tap], seen[tap]) for tap in absmax}
        for row, alpha in zip(rows, alphas, strict=True):
            scales = None
            if alpha is not None:
                scales = self._smooth(row, alpha, absmax)
                self._note_changed(row)
            self.reports.append(TransformReport(row, alpha, scales, error, plain))

    def _search_alphas(
        self,
        view: BlockView,
        rows: Sequence[PlannedTransform],
        absmax: Mapping[str, Tensor],
        samples: Sequence[int],
    ) -> tuple[list[float | None], float, float]:
        """The alpha of each binding (None = no smoothing), the error with them, and without.

        The error is that of the block's output. First one alpha for all bindings is chosen, then
        another for each in turn if that is better.
        """
        wanted = {sample: view.output(sample) for sample in view.mine(samples)}

        def judge(alphas: Sequence[float | None]) -> float:
            with self._trial(view.path, rows):
                inputs = dict(absmax)
                for row, alpha in zip(rows, alphas, strict=True):
                    if alpha is not None:
                        self._smooth(row, alpha, inputs)
                self._fake_quantize(view.path, inputs)
                return _output_error(view, samples, wanted)

        grid: tuple[float | None, ...] = (None, *ALPHAS)
        errors = [judge([alpha] * len(rows)) for alpha in grid]
        error = min(errors)
        common = grid[errors.index(error)]
        alphas = [common] * len(rows)
        for place in range(len(rows) if len(rows) > 1 else 0):
            for alpha in grid:
                if alpha != common:
                    other = [*alphas[:place], alpha, *alphas[place + 1 :]]
                    if (found := judge(other)) < error:
                        alphas, error = other, found
        return alphas, error, errors[0]

    def _smooth(self, row: PlannedTransform, alpha: float, absmax: dict[str, Tensor]) -> Tensor:
        """Fold one binding and keep `absmax` (per tap and column) true; returns the scales."""
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

    def _awq(self, view: BlockView, step: AWQStep, row: PlannedTransform) -> None:
        _, index, channels = self._input_of(row)
        names = self._quantized(row)
        spec, planned = self.rows[names[0]].spec, self.rows[names[0]].step
        assert planned is not None
        rounds = planned.method == "rtn"
        device = self.device
        found = view.observe(
            lambda: {
                spec.name: [
                    Hessian(spec.in_features, device, gram_on(device)),
                    MeanAbs(spec.in_features, device),
                ]
            }
        )
        hessian, magnitudes = found[spec.name]
        assert isinstance(hessian, Hessian) and isinstance(magnitudes, MeanAbs)
        try:
            best = awq_scales(
                [weight_of(self.model, self.rows[name].spec) for name in names],
                hessian.values,
                reduce_columns(magnitudes.values, index, channels, "mean"),
                planned.scheme,
                index=index,
                points=step.points,
                clip=step.clip and rounds,
                signed=None if rounds else False,
            )
        except ValueError as error:
            raise ValueError(f"{row.source}: {error}") from None
        scales = None
        if best.error < best.rtn_error:
            scales = self._fold(row, best.scales)
            self._note_changed(row)
        if step.clip:
            self.clipped.update(names)
        ratio = None if scales is None else best.ratio
        self.reports.append(
            TransformReport(row, ratio, scales, best.error, best.rtn_error, best.balanced)
        )

    def _fold(self, row: PlannedTransform, scales: Tensor) -> Tensor:
        """Divide a source by `scales`; returns those that its readers really took."""
        tensors = self._tensors(row.block)
        stored = {}
        if self.model.config.dtype is not None:
            stored = dict.fromkeys(self._kept(row, tensors), self.model.config.dtype)
        factors = rescale_(
            tensors, row.block, row.binding, 1 / scales, self.model.config, stored=stored
        )
        return 1 / factors

    def _tensors(self, block: str) -> dict[str, Tensor]:
        parameters = self.model.get_submodule(block).named_parameters(prefix=block)
        return {name: parameter.data for name, parameter in parameters}

    def _kept(self, row: PlannedTransform, tensors: Mapping[str, Tensor]) -> list[str]:
        """Tensors that take factors and that a checkpoint holds in float."""
        names = source_names(tensors, row.block, row.binding) + reader_names(row.block, row.binding)
        return [name for name in names if name.removesuffix(".weight") not in self.rows]

    def _note_changed(self, row: PlannedTransform) -> None:
        self.changed.update(self._kept(row, self._tensors(row.block)))

    def _quantized(self, row: PlannedTransform) -> list[str]:
        return [name for name in row.linears if name in self.rows]

    def _input_of(self, row: PlannedTransform) -> tuple[str, Tensor, int]:
        """Tap of the readers, the channel of each of its columns, and how many channels."""
        channels = count_channels(self._tensors(row.block), row.block, row.binding)
        tap = self.rows[self._quantized(row)[0]].spec.tap
        index = channel_index(row.binding, channels, self.model.config)
        return tap, index.to(self.device), channels

    def _groups(self, block: str) -> list[TapGroup]:
        return tap_groups([row.spec for row in self.rows.values()], block)

    def _absmax(self, view: BlockView, samples: Sequence[int]) -> dict[str, Tensor]:
        """Largest magnitude per column of every input that a quantized layer of the block reads."""
        groups = self._groups(view.path)

        def make() -> dict[str, list[AbsMax]]:
            return {g.linears[0].name: [AbsMax(g.in_features, self.device)] for g in groups}

        found = view.observe(make, samples)
        values = {}
        for group in groups:
            (observer,) = found[group.linears[0].name]
            assert isinstance(observer, AbsMax)
            values[group.tap] = observer.values
        return values

    @contextmanager
    def _trial(self, block: str, rows: Sequence[PlannedTransform]) -> Iterator[None]:
        """Put weights and layers back on exit."""
        tensors = self._tensors(block)
        touched = {
            name
            for row in rows
            for name in (
                *source_names(tensors, block, row.binding),
                *reader_names(block, row.binding),
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
        """Round the layers of a block as the recipe will, without solving."""
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
    """Samples on which to judge, and the others, whose ranges the judged choices rest on.

    On the samples that gave the ranges nothing ever leaves a static scale, and a large alpha, which
    makes every channel fill it, looks better than it is.
    """
    stride = max(round(1 / SEARCH_SHARE), -(-len(samples) // SEARCH_SAMPLES))
    judged = samples[1::stride]
    return judged, [sample for sample in samples if sample not in judged]


def _output_error(view: BlockView, samples: Sequence[int], wanted: Mapping[int, Tensor]) -> float:
    """Squared error of the block's outputs relative to their energy, over weighted tokens."""

    def judge(sample: int) -> tuple[float, float]:
        rows = wanted[sample].float().flatten(0, -2)
        off = (view.output(sample).float().flatten(0, -2) - rows).square().sum(dim=-1)
        size = rows.square().sum(dim=-1)
        if (weights := view.token_weights(sample)) is not None:
            off, size = off * weights.to(off), size * weights.to(size)
        return float(off.sum(dtype=torch.float64)), float(size.sum(dtype=torch.float64))

    error = energy = 0.0
    for off, size in view.each(samples, judge):
        error, energy = error + off, energy + size
    return error / energy if energy else 0.0
