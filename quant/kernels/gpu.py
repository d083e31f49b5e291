"""Linear layers with quantized weights on a GPU: a thin wrapper around the Triton kernels.

Triton is part of torch's CUDA builds; where it is missing, `why_not` gives the reason and the
reference kernel is the fallback. The Triton kernels read the reference's layout, so that nothing is
repacked.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .triton_tuning import MIN_BLOCK


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def why_not(in_features: int, groups: int, group_index: Tensor | None = None) -> str | None:
    """Reason why the kernels do not support a weight; None if they do.

    Args:
        in_features: K.
        groups: groups per row.
        group_index: int32 `[K]`, or None for consecutive groups.
    """
    if not has_triton():
        return "Triton is not installed"
    width = in_features // groups
    if width % MIN_BLOCK:
        return f"groups of {width} inputs; the Triton kernels take multiples of {MIN_BLOCK}"
    if group_index is not None:
        return "its inputs are in the order of a group index"
    return None


@dataclass(frozen=True)
class TritonLinear:
    """One weight in the layout of `reference.py`."""

    packed: Tensor
    """uint8, from `reference.prepack`."""
    scales: Tensor
    """Float `[N, G]`."""
    zero_points: Tensor
    """uint8 `[N, G]`."""
    bits: int
    bias: Tensor | None
    name: ClassVar[str] = "triton"

    def __call__(self, x: Tensor, input_scale: Tensor | float | None = None) -> list[Tensor]:
        """Compute `x @ W' + bias`, with the interface of `CpuLinear` for one weight.

        Args:
            x: `[..., K]` float.
            input_scale: None for float activations. Otherwise `x` is quantized to int8: with this
                scale, or with one scale per row if it is 0.

        Returns:
            A list of one tensor, `[..., N]` in the dtype of `x`.

        Raises:
            RuntimeError: `x` requires a gradient; the kernels have none.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("quantized layers on Triton kernels have no gradient; use no_grad()")
        weight = (self.packed, self.scales, self.zero_points, self.bits, self.bias)
        if input_scale is None:
            # Imported on use: the modules import Triton.
            from .triton_float import weight_only_linear

            return [weight_only_linear(x, *weight)]
        from .triton_integer import integer_linear

        scale = None
        if input_scale != 0.0:
            scale = torch.as_tensor(input_scale, dtype=torch.float32, device=x.device)
        return [integer_linear(x, *weight, scale)]
