"""Linear layers that share an input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def project(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """Apply several linear layers that share an input; returns one output per layer.

    If the first layer has an attribute `fused`, a callable that computes the layers in its
    attribute `layers` with one product, it is used. The layers are compared because a module may
    have been replaced since (the block runner does so).

    Args:
        x: `[..., in_features]`.
        *layers: at least one.
    """
    fused: Any = getattr(layers[0], "fused", None)
    if fused is not None and _same(fused.layers, layers):
        apply: Callable[[Tensor], list[Tensor]] = fused
        return apply(x)
    return [layer(x) for layer in layers]


def _same(left: tuple[nn.Module, ...], right: tuple[nn.Module, ...]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
