"""Times of single layers for one token: a look-up table for a search under a latency budget.

Each pair of a shape and a scheme is timed once, by the kernel that `generate` would use. Layers
that kernels fuse at inference (q, k and v; gate and up) are timed one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from copy import deepcopy

import torch
from torch import Tensor, nn

from ..quant.kernels import bf16_linear
from ..quant.methods.rtn import rtn
from ..quant.recipe.scheme import QuantScheme
from ..quant.runtime.kernel_selection import select_layer_kernel
from ..quant.runtime.linear import FloatLinear
from .timing import copies_of, time_in_turns

Shape = tuple[int, int, QuantScheme | None]
"""in_features, out_features and scheme; None = float."""

ROUNDS, SECONDS = 3, 0.03
"""Measured turns per layer, and seconds per turn."""
MAX_COPIES = 64
"""Copies of a small layer: a whole model of them fits into the caches as well."""


def time_layers(
    shapes: Collection[Shape],
    dtype: torch.dtype,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> dict[Shape, float]:
    """Measure the milliseconds of layers for one token, on the CPU.

    Args:
        shapes: to measure.
        dtype: of inputs and float layers.
        on_progress: called with the number of finished shapes, their total and the last one.
    """
    times = {}
    for number, shape in enumerate(shapes, 1):
        in_features, out_features, scheme = shape
        weight = torch.randn(out_features, in_features, generator=torch.Generator().manual_seed(0))
        make = _maker(weight / in_features**0.5, scheme, dtype)
        size = (scheme.bits if scheme else 8 * dtype.itemsize) * weight.numel() // 8
        layers = [make() for _ in range(min(copies_of(max(size, 1)), MAX_COPIES))]
        token = torch.randn(1, 1, in_features).to(dtype)
        calls = [_bound(each, token) for each in layers]
        with torch.inference_mode():
            seconds = time_in_turns({"layer": calls}, rounds=ROUNDS, budget=SECONDS)
        times[shape] = 1e3 * seconds["layer"]
        if on_progress is not None:
            on_progress(number, len(shapes), f"{in_features} x {out_features}")
    return times


def _maker(
    weight: Tensor, scheme: QuantScheme | None, dtype: torch.dtype
) -> Callable[[], nn.Module]:
    """Return a function that makes a copy of a layer as it is prepared for `generate`."""
    if scheme is not None:
        quantized = rtn(weight, scheme)

        def compressed() -> nn.Module:
            layer = deepcopy(quantized).inference_layer(None)
            select_layer_kernel(layer)
            return layer

        return compressed
    product = bf16_linear.select_linear(weight.device)

    def in_float() -> nn.Module:
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        linear.weight = nn.Parameter(weight.to(dtype, copy=True), requires_grad=False)
        if dtype == torch.bfloat16 and isinstance(product, bf16_linear.Bf16Linear):
            return FloatLinear(linear, product)
        return linear

    return in_float


def _bound(layer: nn.Module, token: Tensor) -> Callable[[], object]:
    return lambda: layer(token)
