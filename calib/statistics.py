"""Statistics of layer inputs as data: their names, observers and costs.

Methods declare the statistics that they need; the calibration pass creates the observers. The
module does not import torch, so that a recipe can be read without it.

Letters: K input features, N output features of all layers that read the input.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .observers import Syrk

InputRounding = Callable[["Tensor"], "Tensor"]
"""Rounds the inputs of a layer `[..., K]` as the quantized layer will; same shape and dtype. Layers
whose roundings are equal share the statistics of an input."""


@dataclass(frozen=True)
class ObservedInput:
    """The input that an observer is created for."""

    in_features: int
    device: torch.device
    syrk: Syrk | None = None
    """Faster product for Hessians of bf16 inputs, see `Hessian`."""
    free_buffers: list[Tensor] | None = None
    """Squares of packed Hessians, which the next one reuses, see `PackedSymmetric`."""
    float_weights: Sequence[Tensor] = ()
    """Float weights `[N, K]` of the layers that read the input; only for statistics with
    `from_float_model`."""


@dataclass(frozen=True)
class Statistic:
    """A kind of statistic of a layer's input."""

    name: str
    observer: Callable[[ObservedInput], Any] | None
    """Creates an observer with the methods of `Observer` and `Statistics` (`observers.py`); None if
    the Hessian, which is kept of every calibrated input, contains the statistic."""
    from_float_model: bool = False
    """Whether inputs in the float model are needed too. Samples then also run through a float copy
    of each block, and `update` gets them as its second argument."""
    macs: Callable[[int, int], float] = lambda columns, rows: 0
    """Float32 multiply-adds per token, as a function of K and N."""
    memory: Callable[[int], int] = lambda columns: 0
    """Bytes while samples run, as a function of K."""


def _hessian(of: ObservedInput) -> Any:
    from .observers import Hessian

    return Hessian(of.in_features, of.device, of.syrk, of.free_buffers)


def _hessian_memory(columns: int) -> int:
    """Count the bytes of a Hessian while samples run.

    One chunk's Hessian is being summed while three others are pending, each packed to half its size
    (`reduction.py`). The tokens of a batched product exist three times: as collected, concatenated,
    and transposed.
    """
    from .observers import BATCH_TOKENS

    return 4 * columns**2 * 5 // 2 + 3 * 2 * BATCH_TOKENS * columns


def _cross_moment(of: ObservedInput) -> Any:
    from .observers import CrossMoment

    rows = sum(len(weight) for weight in of.float_weights)
    # Cross moments of outputs take less work than those of inputs if there are few of them.
    projects = 2 * rows < of.in_features
    return CrossMoment(of.in_features, of.device, of.float_weights if projects else None)


def _absmax(of: ObservedInput) -> Any:
    from .observers import AbsMax

    return AbsMax(of.in_features, of.device)


def _mean_abs(of: ObservedInput) -> Any:
    from .observers import MeanAbs

    return MeanAbs(of.in_features, of.device)


HESSIAN = Statistic(
    "Hessian", _hessian, macs=lambda columns, rows: columns**2, memory=_hessian_memory
)
"""Second moment of the input. It is kept of every calibrated input, as errors are measured with it;
a method declares it if it cannot work without."""


def observing_bytes(columns: int, statistics: Collection[Statistic]) -> int:
    """Count the bytes of the statistics of one input while samples run.

    Args:
        columns: K.
        statistics: those that are needed besides the Hessian.
    """
    return sum(statistic.memory(columns) for statistic in {*statistics, HESSIAN})


INPUT_RANGE = Statistic("input range", None)
"""Smallest and largest input, for static activation scales."""
CROSS_MOMENT = Statistic(
    "cross moment",
    _cross_moment,
    from_float_model=True,
    macs=lambda columns, rows: min(columns**2, 2 * columns * rows),
    # Not packed like Hessians, but cross moments of outputs have at most half as many rows.
    memory=lambda columns: 16 * columns**2,
)
"""Second moment of the input with its deviation from the float model's."""
CHANNEL_ABSMAX = Statistic("channel absmax", _absmax)
"""Largest magnitude per channel."""
CHANNEL_MEAN_ABS = Statistic("channel mean magnitude", _mean_abs)
"""Mean magnitude per channel."""
