"""AWQ: scale up the columns that large activations read before rounding, and down afterwards.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", arXiv
2306.00978, section 3.2: a column multiplied by s before it is rounded has an error about s times
smaller, and the activations are divided by s (`rescale.py`). The scales follow the activations,
``s = mean|x|**ratio`` (equation 5), and the ratio is searched on a grid.

What differs: the error of a candidate is ``sum tr(E H E')`` under the layers' Hessian, which is the
paper's squared output error over all calibration tokens, without running any of them again. A
second grid also divides by the size of the weights, ``mean|x|**ratio / mean|w|**(1 - ratio)``,
which columns of outliers ask for. No scales at all is the first candidate and wins ties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..recipe.scheme import QuantScheme
from .channel_scaling import reduce_columns
from .layer_error import relative_error
from .rtn import rtn

LARGEST_SCALE = 2.0**16
# Magnitudes below this share of the mean are all alike.
_NEGLIGIBLE = 1e-4


@dataclass(frozen=True)
class AWQResult:
    """The best scales of a search."""

    scales: Tensor
    """float32 ``[channels]``: columns are multiplied by them, activations divided."""
    ratio: float
    """Exponent of the mean magnitude of the activations, 0 to 1."""
    balanced: bool
    """Whether the magnitude of the weights counts too."""
    error: float
    """Relative squared output error of the layers, rounded with these scales."""
    rtn_error: float
    """The same without scales."""


def awq_scales(
    weights: Sequence[Tensor],
    hessian: Tensor,
    magnitudes: Tensor,
    scheme: QuantScheme,
    *,
    index: Tensor | None = None,
    points: int = 20,
    clip: bool = False,
    signed: bool | None = None,
) -> AWQResult:
    """Search the scales of one input for the layers that read it.

    Args:
        weights: ``[N, K]`` each, any float dtype.
        hessian: ``[K, K]``, ``X' X`` of the input up to a positive factor.
        magnitudes: float32 ``[channels]``, mean magnitude of each channel of the input.
        scheme: the grid that the layers are rounded to.
        index: int64 ``[K]``, the channel that each column carries; None = its own.
        points: steps of the grid between ratio 0 and 1.
        clip: judge candidates by rounding that searches its scales, as `rtn` does with a Hessian.
        signed: as `rtn` takes it; False for layers that a solver gets afterwards.

    Raises:
        ValueError: shapes do not fit, the statistics are not finite, or there is no grid.
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
    best: AWQResult | None = None
    for balanced in (False, True):
        for point in range(points + (not balanced)):  # at ratio 1 both grids agree
            ratio = point / points
            scales = scales_at(magnitudes, ratio, sizes if balanced else None)
            spread = scales[index]
            scaled = hessian / spread / spread[:, None] if clip else None
            candidates = [
                rtn(weight.float() * spread, scheme, scaled, signed=signed).dequantize() / spread
                for weight in weights
            ]
            error = relative_error(weights, candidates, hessian)
            if best is None or error < best.error:
                rtn_error = best.rtn_error if best else error
                best = AWQResult(scales, ratio, balanced, error, rtn_error)
    assert best is not None
    return best


def column_magnitudes(weights: Sequence[Tensor], scheme: QuantScheme) -> Tensor:
    """Mean magnitude of each input column, each weight relative to the largest of its group.

    Args:
        weights: ``[N, K]`` each.
        scheme: says what a group is.

    Returns:
        float32 ``[K]``, 0 to 1.
    """
    sizes = []
    for weight in weights:
        grouped = weight.float().abs().reshape(len(weight), -1, scheme.width(weight.shape[1]))
        largest = grouped.amax(dim=-1, keepdim=True)
        sizes.append((grouped / largest.masked_fill(largest == 0, 1.0)).flatten(1))
    return torch.cat(sizes).mean(dim=0)


def scales_at(magnitudes: Tensor, ratio: float, sizes: Tensor | None = None) -> Tensor:
    """``magnitudes**ratio / sizes**(1 - ratio)``, centred: the largest times the smallest is 1.

    Args:
        magnitudes: float32 ``[channels]``, of the activations; a channel of 0 gets scale 1.
        ratio: 0 to 1.
        sizes: float32 ``[channels]``, of the weights; None leaves them out.

    Returns:
        float32 ``[channels]``, positive and finite.
    """
    excited = magnitudes > 0
    if not bool(excited.any()):
        return torch.ones_like(magnitudes)
    mean = magnitudes[excited].double().mean()  # their sum may overflow float32
    logs = ratio * (magnitudes / mean).clamp_min(_NEGLIGIBLE).log()
    if sizes is not None:
        logs = logs - (1 - ratio) * sizes.clamp_min(_NEGLIGIBLE).log()
    middle = (logs[excited].max() + logs[excited].min()) / 2
    scales = (logs - middle).exp().clamp(1 / LARGEST_SCALE, LARGEST_SCALE)
    return scales.float().masked_fill(~excited, 1.0)
