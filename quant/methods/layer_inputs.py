"""Statistics of the input that some layers share, as the solvers of these layers use them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...calib.observers import CrossMoment, Hessian
from ...calib.statistics import CROSS_MOMENT, HESSIAN, Statistic
from .hessian.prepared_hessian import PreparedHessian, prepare_hessian
from .layer_error import relative_error


class SharedInput:
    """Statistics of an input, and the factor that was used last."""

    def __init__(self, statistics: Mapping[Statistic, Any]) -> None:
        """Keep the observers by statistic; one is the Hessian."""
        self.statistics = statistics
        self._prepared: tuple[tuple[float, bool], PreparedHessian] | None = None

    @property
    def hessian(self) -> Hessian:
        """The Hessian with the number of tokens and the range of the input."""
        hessian: Hessian = self.statistics[HESSIAN]
        return hessian

    def prepare(self, damp_percent: float, act_order: bool) -> PreparedHessian:
        """Return the Hessian with its factor; layers with equal options share it.

        Raises:
            ValueError: see `prepare_hessian`.
        """
        key = damp_percent, act_order
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = None  # frees the other factor first
            prepared = prepare_hessian(
                self.hessian.values, damp_percent=damp_percent, act_order=act_order
            )
            self._prepared = key, prepared
        return self._prepared[1]


@dataclass(frozen=True)
class LayerInputs:
    """Statistics of the input of one layer."""

    shared: SharedInput
    first_row: int = 0
    """Number of outputs of the layers before this one that read the same input."""

    def __getitem__(self, statistic: Statistic) -> Any:
        """Return the observer of a statistic that the method declares."""
        return self.shared.statistics[statistic]

    @property
    def hessian(self) -> Hessian:
        """See `SharedInput.hessian`."""
        return self.shared.hessian

    def prepare(self, damp_percent: float, act_order: bool) -> PreparedHessian:
        """See `SharedInput.prepare`."""
        return self.shared.prepare(damp_percent, act_order)

    def deviation(self, weight: Tensor) -> Tensor:
        """Return `W (X~ - X) X'` of the layer, see `asymmetric_target`."""
        cross: CrossMoment = self.shared.statistics[CROSS_MOMENT]
        return cross.of_outputs(weight, self.first_row)

    def error(self, weight: Tensor, candidate: Tensor) -> float:
        """Compute the relative squared output error of a candidate `[N, K]` for the weight."""
        return self.error_of_parts([weight], [candidate])

    def error_of_parts(self, weights: Iterable[Tensor], candidates: Iterable[Tensor]) -> float:
        """Compute the same error from runs of rows, which can be made one at a time."""
        return relative_error(weights, candidates, self.hessian.values)
