"""SmoothQuant on a block, with fixed or searched alphas; the formula is in `smoothquant.py`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from ....calib.sequential import CalibrationBlock
from ....calib.statistics import CHANNEL_ABSMAX
from ...methods.channel_scaling import reader_names, reduce_columns, source_names
from ...methods.rtn import rtn
from ...methods.smoothquant import ALPHAS, smooth_scales, weight_absmax
from ...plan.channel_groups import PlannedTransform
from ...recipe.scheme import QuantScheme
from ...steps.transform import Scaling
from ...targets import put_compressed, put_module, weight_of
from .transforms import BlockTransforms

SEARCH_SAMPLES = 32
"""Largest number of samples that an alpha is judged on, spread over the calibration set."""
SEARCH_SHARE = 0.25
"""Largest fraction of the calibration set that an alpha is judged on."""


def smooth_block(
    run: BlockTransforms,
    block: CalibrationBlock,
    rows: Sequence[PlannedTransform],
    alpha: float | None,
) -> list[Scaling]:
    """Smooth the channel groups of a block.

    Args:
        run: folds the scales.
        block: the block.
        rows: its channel groups.
        alpha: migration strength; None searches one for each group.

    Raises:
        ValueError: no sample reaches the block, its inputs overflow, or the error of a candidate is
            not finite.
    """
    alphas: Sequence[float | None] = [alpha] * len(rows)
    error: float | None = None
    plain_error: float | None = None
    held_out, others = _split(block.samples)
    absmax = _absmax(run, block, others)
    if alpha is None:
        alphas, error, plain_error = _search_alphas(run, block, rows, absmax, held_out or others)
    if held_out:
        # The final ranges are those of all samples.
        held_out_absmax = _absmax(run, block, held_out)
        absmax = {tap: torch.maximum(absmax[tap], held_out_absmax[tap]) for tap in absmax}
    scalings = []
    for row, chosen in zip(rows, alphas, strict=True):
        scales = None
        if chosen is not None:
            scales = _smooth(run, row, chosen, absmax)
            run.record_changed(row)
        scalings.append(Scaling({"alpha": chosen}, scales, error, plain_error))
    return scalings


def _search_alphas(
    run: BlockTransforms,
    block: CalibrationBlock,
    rows: Sequence[PlannedTransform],
    absmax: Mapping[str, Tensor],
    samples: Sequence[int],
) -> tuple[list[float | None], float, float]:
    """Search the alpha of each channel group of a block.

    All combinations would be too many. First one alpha for all groups is chosen; then each group in
    turn takes another one if that lowers the error (one pass of coordinate descent).

    Args:
        run: folds the scales.
        block: not transformed yet.
        rows: its channel groups.
        absmax: ranges of the inputs, by tap.
        samples: to measure the error on.

    Returns:
        The alphas (None = no smoothing), the relative squared error of the block's output with
        them, and the error without smoothing.

    Raises:
        ValueError: the error of a candidate is not finite.
    """
    expected = {sample: block.output(sample) for sample in block.local_samples(samples)}

    def measure(alphas: Sequence[float | None]) -> float:
        with _trial(run, block.path, rows):
            inputs = dict(absmax)
            for row, alpha in zip(rows, alphas, strict=True):
                if alpha is not None:
                    _smooth(run, row, alpha, inputs)
            _fake_quantize(run, block.path, inputs)
            error = _output_error(block, samples, expected)
        if not math.isfinite(error):
            raise ValueError(
                f"{block.path}: the error of its output with alpha {alphas} is {error}, allowed: "
                "finite numbers; look for weights that are not finite or far too large, and "
                "calibrate in bf16 or fp32"
            )
        return error

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


def _smooth(
    run: BlockTransforms, row: PlannedTransform, alpha: float, absmax: dict[str, Tensor]
) -> Tensor:
    """Smooth one channel group and update `absmax` (by tap, per column); returns the scales."""
    tap, index, channels = run.input_of(row)
    act_scales = reduce_columns(absmax[tap], index, channels, "amax")
    weight_scales = reduce_columns(weight_absmax(run.weights(row)), index, channels, "amax")
    try:
        scales = run.fold(row, smooth_scales(act_scales, weight_scales, alpha))
    except ValueError as error:
        raise ValueError(f"{row.source}: {error}") from None
    absmax[tap] = absmax[tap] / scales[index.to(scales.device)]
    return scales


def _absmax(
    run: BlockTransforms, block: CalibrationBlock, samples: Sequence[int]
) -> dict[str, Tensor]:
    """Measure the largest magnitude per column of each input of quantized layers, by tap."""
    observers = run.observe(block, run.groups(block.path), {CHANNEL_ABSMAX}, samples)
    return {tap: of_tap[CHANNEL_ABSMAX].values for tap, of_tap in observers.items()}


@contextmanager
def _trial(run: BlockTransforms, block: str, rows: Sequence[PlannedTransform]) -> Iterator[None]:
    """Restore the weights and layers of a block on exit, also after an error."""
    tensors = run.tensors(block)
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
        spec.name: run.model.get_submodule(spec.name)
        for group in run.groups(block)
        for spec in group.linears
    }
    try:
        yield
    finally:
        for name, layer in layers.items():
            put_module(run.model, name, layer)
        for name, value in saved.items():
            tensors[name].copy_(value)


def _fake_quantize(run: BlockTransforms, block: str, absmax: Mapping[str, Tensor]) -> None:
    """Quantize the layers of a block by rounding: a solver would take far too long here."""
    for group in run.groups(block):
        for spec in group.linears:
            step = run.rows[spec.name].step
            assert step is not None and isinstance(step.scheme, QuantScheme)
            weight = rtn(weight_of(run.model, spec), step.scheme)
            if step.scheme.calibrates_input:
                weight = weight.with_input_range(float(absmax[group.tap].max()))
            put_compressed(run.model, spec, weight)


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

    Returns:
        The relative squared error; NaN if the energy overflows.
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
    if not math.isfinite(total_energy):
        return math.nan
    return total_error / total_energy if total_energy else 0.0
