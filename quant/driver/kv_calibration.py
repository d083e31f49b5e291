"""Calibrated scales of an FP8 KV cache, in the report of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...model.kv_quant.fp8 import FP8_MAX
from ...model.kv_quant.ranges import OUTLIER_RATIO, LayerRange, outlier_warning
from ...model.kv_quant.scales import KVScales
from ..methods.affine import choose_input_scale

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CalibratedLayer:
    """Range of a layer's keys and values over the calibration samples, and the scales for it."""

    range: LayerRange
    scales: KVScales

    @classmethod
    def of(cls, measured: LayerRange) -> CalibratedLayer:
        """Choose the scales: the largest magnitude / 448, as `choose_input_scale` rounds it."""
        key, value = (
            float(choose_input_scale(largest, FP8_MAX))
            for largest in (measured.key_max, measured.value_max)
        )
        return cls(measured, KVScales(key, value))

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        scales = {"k_scale": self.scales.key, "v_scale": self.scales.value}
        return {**self.range.to_dict(), **scales}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CalibratedLayer:
        """Undo `to_dict`."""
        measured = {k: v for k, v in data.items() if k not in ("k_scale", "v_scale")}
        return cls(LayerRange(**measured), KVScales(data["k_scale"], data["v_scale"]))


def describe_calibration(layers: Sequence[CalibratedLayer]) -> dict[str, Any]:
    """Return the record of all layers as plain data, with the threshold of the warning."""
    return {
        "outlier_ratio": OUTLIER_RATIO,
        "layers": [of_layer.to_dict() for of_layer in layers],
    }


def warn_of_outliers(layers: Iterable[CalibratedLayer]) -> None:
    """Log the layers whose keys have outlier channels."""
    if text := outlier_warning(of_layer.range for of_layer in layers):
        logger.warning("%s", text)
