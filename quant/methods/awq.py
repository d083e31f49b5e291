"""AWQ: before rounding, scale up the weight columns that multiply large activations.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", arXiv
2306.00978, section 3.2: a column multiplied by s before it is rounded has an error about s times
smaller, and the activations are divided by s (`channel_scaling.py`). The scales follow the
activations, `s = mean|x|**ratio` (equation 5), and the ratio is searched on a grid.

Differences from the paper:

- The error of a candidate is `sum tr(E H E')` under the Hessian of the input. This equals the
  paper's squared output error over all calibration tokens, without running them again.
- A second grid also divides by the magnitude of the weights,
  `mean|x|**ratio / mean|w|**(1 - ratio)`, which suits columns with outliers.
- Output rows with different uses (`split_rows`) are compared each with their own outputs. The
  error of a candidate is the mean of their relative errors, and a candidate is not chosen if the
  rows of any use have a larger error under it than without scales.
- The first candidate has no scales and wins ties.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recipe.scheme import QuantScheme
from .channel_scaling import reduce_columns
from .layer_error import relative_error, row_energy, split_rows
from .rtn import rtn

LARGEST_SCALE = 2.0**16
"""Bound of scales and of their inverses."""
_NEGLIGIBLE = 1e-4  # magnitudes below this fraction of the mean count as this fraction


@dataclass(frozen=True)
class AWQResult:
    """The scales with the smallest error."""

    scales: Tensor
    """float32 `[channels]`; columns are multiplied by them, activations divided."""
    ratio: float
    """Exponent of the mean magnitude of the activations, 0 to 1."""
    balanced: bool
    """Whether the scales also depend on the magnitude of the weights (the second grid)."""
    error: float
    """Relative squared output error of the layers when rounded with these scales, the mean over the
    uses of their rows."""
    rtn_error: float
    """The same without scales."""


def awq_scales(
    weights: Sequence[Tensor],
    hessian: Tensor,
    magnitudes: Tensor,
    scheme: QuantScheme,
    *,
    index: Tensor | None = None,
    row_parts: Sequence[tuple[int, ...]] | None = None,
    points: int = 20,
    clip: bool = False,
    signed: bool | None = None,
) -> AWQResult:
    """Search scales for an input and the layers that read it.

    Args:
        weights: `[N, K]` each, any float dtype.
        hessian: `[K, K]`, `X' X` of the input up to a positive factor.
        magnitudes: float32 `[channels]`, mean magnitude of each channel of the input.
        scheme: the grid that the layers are rounded to.
        index: int64 `[K]`, the channel of each column; None if each column is a channel.
        row_parts: for each layer the runs of its rows with different uses, see `split_rows`; None
            if the rows of all layers have the same.
        points: number of grid steps between ratio 0 and 1.
        clip: measure candidates with clipped scales, as `rtn` with a Hessian rounds.
        signed: see `rtn`; False for layers that a solver will quantize.

    Raises:
        ValueError: shapes do not match, the statistics, the outputs or the error of a candidate are
            not finite, or `points` is below 1.
    """
    columns = hessian.shape[0]
    if any(weight.shape[1] != columns for weight in weights):
        widths = ", ".join(str(weight.shape[1]) for weight in weights)
        raise ValueError(f"the Hessian has {columns} columns; the weights have {widths}")
    if points < 1:
        raise ValueError(f"points is {points}; the grid needs at least 1")
    if not bool(torch.isfinite(hessian).all()) or not bool(torch.isfinite(magnitudes).all()):
        raise ValueError("the inputs overflowed during calibration; calibrate in bf16 or fp32")
    if index is None:
        index = torch.arange(columns, device=hessian.device)
    sizes = reduce_columns(column_magnitudes(weights, scheme), index, len(magnitudes), "mean")
    parts = row_parts or [()] * len(weights)
    originals = split_rows(weights, parts)
    for use in originals:
        energy = sum(float(row_energy(rows.float(), hessian).sum()) for rows in use)
        _check_finite(energy, "sum of squares")
    best: AWQResult | None = None
    plain: list[float] = []
    for balanced in (False, True):
        for point in range(points + (not balanced)):  # at ratio 1 both grids agree
            ratio = point / points
            scales = scales_at(magnitudes, ratio, sizes if balanced else None)
            column_scales = scales[index]
            # The Hessian of the scaled input, diag(1/s) H diag(1/s). Only clipping needs it: the
            # error is measured on unscaled weights.
            scaled = hessian / column_scales / column_scales[:, None] if clip else None
            candidates = [
                rtn(weight.float() * column_scales, scheme, scaled, signed=signed).dequantize()
                / column_scales
                for weight in weights
            ]
            errors = [
                relative_error(original, candidate, hessian)
                for original, candidate in zip(
                    originals, split_rows(candidates, parts), strict=True
                )
            ]
            error = sum(errors) / len(errors)
            _check_finite(error, f"error with ratio {ratio}")
            if best is None:
                plain = errors
                best = AWQResult(scales, ratio, balanced, error, error)
            elif error < best.error and all(map(operator.le, errors, plain)):
                best = AWQResult(scales, ratio, balanced, error, best.rtn_error)
    assert best is not None
    return best


def _check_finite(value: float, what: str) -> None:
    """Stop the search if a sum over the outputs of the layers is not finite.

    Raises:
        ValueError: it is not; no choice can follow from it.
    """
    if not math.isfinite(value):
        raise ValueError(
            f"the {what} of the outputs is {value}, allowed: finite numbers; look for weights that "
            "are not finite or far too large, and calibrate in bf16 or fp32"
        )


def column_magnitudes(weights: Sequence[Tensor], scheme: QuantScheme) -> Tensor:
    """Compute the mean magnitude of each input column, relative to the largest weights of groups.

    Args:
        weights: `[N, K]` each.
        scheme: defines the groups.

    Returns:
        float32 `[K]`, 0 to 1.
    """
    sizes = []
    for weight in weights:
        grouped = weight.float().abs().reshape(len(weight), -1, scheme.width(weight.shape[1]))
        largest = grouped.amax(dim=-1, keepdim=True)
        sizes.append((grouped / largest.masked_fill(largest == 0, 1.0)).flatten(1))
    return torch.cat(sizes).mean(dim=0)


def scales_at(magnitudes: Tensor, ratio: float, sizes: Tensor | None = None) -> Tensor:
    """Compute `magnitudes**ratio / sizes**(1 - ratio)`, normalized: max times min is 1.

    Args:
        magnitudes: float32 `[channels]`, of the activations; a zero gives scale 1.
        ratio: 0 to 1.
        sizes: float32 `[channels]`, of the weights; None omits the denominator.

    Returns:
        float32 `[channels]`, positive and finite.
    """
    excited = magnitudes > 0
    if not bool(excited.any()):
        return torch.ones_like(magnitudes)
    mean = magnitudes[excited].double().mean()  # the sum may overflow float32
    # In logarithms, where neither power can overflow.
    logs = ratio * (magnitudes / mean).clamp_min(_NEGLIGIBLE).log()
    if sizes is not None:
        logs = logs - (1 - ratio) * sizes.clamp_min(_NEGLIGIBLE).log()
    middle = (logs[excited].max() + logs[excited].min()) / 2
    scales = (logs - middle).exp().clamp(1 / LARGEST_SCALE, LARGEST_SCALE)
    return scales.float().masked_fill(~excited, 1.0)
