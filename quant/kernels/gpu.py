"""Products with quantized weights on a GPU: a thin wrapper around the Triton kernels.

Triton comes with torch's builds for CUDA; where it is missing, `why_not` says so and the reference
kernel answers. The weight stays in the reference's form, which these kernels read.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .triton_tuning import LEAST


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def why_not(in_features: int, groups: int, group_index: Tensor | None = None) -> str | None:
    """Why these kernels do not take a weight; None if they do.

    Args:
        in_features: K.
        groups: per row.
        group_index: int32 ``[K]``, or None for consecutive groups.
    """
    if not has_triton():
        return "Triton is not installed"
    width = in_features // groups
    if width % LEAST:
        return f"groups of {width} inputs; the Triton kernels take multiples of {LEAST}"
    if group_index is not None:
        return "its inputs are in the order of a group index"
    return None


@dataclass(frozen=True)
class Product:
    """One weight; the form of `reference.py`."""

    packed: Tensor
    """From `reference.prepack`."""
    scales: Tensor
    """Float ``[N, G]``."""
    zero_points: Tensor
    """uint8 ``[N, G]``."""
    bits: int
    bias: Tensor | None
    name: ClassVar[str] = "triton"

    def __call__(self, x: Tensor, input_scale: Tensor | float | None = None) -> list[Tensor]:
        """``x @ W' + bias``, as `cpu.Product` gives it for one weight.

        Raises:
            RuntimeError: a gradient is asked for; there is none.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("quantized layers on Triton kernels have no gradient; use no_grad()")
        weight = (self.packed, self.scales, self.zero_points, self.bits, self.bias)
        if input_scale is None:
            from .triton_float import weight_only_linear

            return [weight_only_linear(x, *weight)]
        from .triton_integer import integer_linear

        given = None
        if input_scale != 0.0:
            given = torch.as_tensor(input_scale, dtype=torch.float32, device=x.device)
        return [integer_linear(x, *weight, given)]
