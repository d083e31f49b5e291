"""Linear layers that read the same input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def project(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What several linear layers give for the same input, one by one.

    A layer's attribute `fused` may hold a callable that computes all of them at once; its `layers`
    say for which ones. It is used as long as these are still the ones that are asked for.
    """
    fused: Any = getattr(layers[0], "fused", None)
    if fused is not None and _same(fused.layers, layers):
        run: Callable[[Tensor], list[Tensor]] = fused
        return run(x)
    return [layer(x) for layer in layers]


def _same(left: tuple[nn.Module, ...], right: tuple[nn.Module, ...]) -> bool:
    return len(left) == len(right) and all(a is b for a, b in zip(left, right, strict=True))
