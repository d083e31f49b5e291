"""Ranges of keys and values per channel, and outlier channels of the keys.

A scale per token and head is set by the largest channel of the head. Keys have channels that are
large for every token (Qwen2.5's biases of q and k; KIVI, arXiv 2402.02750, section 3.2): all others
then share the few levels that are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from .fp8 import FP8_MAX
from .scales import KVScales

OUTLIER_RATIO = 16.0
"""Largest channel over median channel, beyond which keys have outlier channels: an int8 scale then
leaves fewer than 8 of 127 levels, four bits with the sign, to half of the channels."""
NAMED = 4
"""Layers that a warning names."""


@dataclass(frozen=True)
class LayerRange:
    """Figures of the keys (after the rotary embedding) and values of one layer."""

    layer: int
    key_outlier_ratio: float
    """Largest over all heads: magnitude of the largest channel over that of the median channel."""
    head: int
    """KV head with that ratio."""
    channel: int
    """Its largest channel."""
    key_max: float
    """Largest magnitude of all keys."""
    value_max: float
    """Largest magnitude of all values."""

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain data for JSON."""
        return asdict(self)


def layer_range(layer: int, key_channels: Tensor, value_channels: Tensor) -> LayerRange:
    """Compute the figures of a layer.

    Args:
        layer: index of the layer.
        key_channels: largest magnitude of each channel of the keys, `[kv_heads, head_dim]`.
        value_channels: that of the values.

    Returns:
        The figures. Channels that are always zero do not count in the median: they lose nothing.
    """
    channels = key_channels.double()
    ratios = [_outlier_ratio(of_head) for of_head in channels]
    head = ratios.index(max(ratios))
    return LayerRange(
        layer=layer,
        key_outlier_ratio=ratios[head],
        head=head,
        channel=int(channels[head].argmax()),
        key_max=float(channels.max()),
        value_max=float(value_channels.max()),
    )


def _outlier_ratio(channels: Tensor) -> float:
    used = channels[channels > 0]
    return float(used.max() / used.median()) if len(used) else 1.0


def outlier_warning(ranges: Iterable[LayerRange]) -> str | None:
    """Name the layers whose keys have outlier channels, the largest ratio first; None without any.

    Args:
        ranges: of all layers.
    """
    beyond = [of_layer for of_layer in ranges if of_layer.key_outlier_ratio > OUTLIER_RATIO]
    if not beyond:
        return None
    beyond.sort(key=lambda of_layer: -of_layer.key_outlier_ratio)
    names = [
        f"layer {one.layer} ({one.key_outlier_ratio:.1f}, head {one.head}, channel {one.channel})"
        for one in beyond[:NAMED]
    ]
    more = f" and {len(beyond) - NAMED} more" if len(beyond) > NAMED else ""
    return (
        f"keys have outlier channels, more than {OUTLIER_RATIO:g} times the median channel: "
        f"{', '.join(names)}{more}; a quantized KV cache loses much there"
    )


def clipping_warning(ranges: Sequence[LayerRange], scales: Sequence[KVScales] | None) -> str | None:
    """Name the layers whose keys or values an fp8 cache clips; None without any.

    Args:
        ranges: of all layers.
        scales: of the same layers; None: 1.
    """
    names = []
    for one, scale in zip(ranges, scales or [KVScales(1.0, 1.0)] * len(ranges), strict=True):
        for kind, largest, limit in (
            ("keys", one.key_max, FP8_MAX * scale.key),
            ("values", one.value_max, FP8_MAX * scale.value),
        ):
            if largest > limit:
                names.append(f"{kind} of layer {one.layer} (up to {largest:.4g}, kept {limit:.4g})")
    if not names:
        return None
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    remedy = "" if scales else "; calibrate scales with [kv_cache] in the recipe"
    return f"the fp8 KV cache clips {', '.join(names[:NAMED])}{more}{remedy}"
