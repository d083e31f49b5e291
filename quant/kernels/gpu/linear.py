"""Linear layers with packed weights on a GPU: the choice between the Triton kernels.

Triton is part of torch's CUDA builds; where it is missing, `why_not` gives the reason and the
reference kernel is the fallback.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .packing import ROWS, PackedWeight, why_not_groups, why_not_scales
from .tuning import capability_of

FIRST_FP8 = 89
"""First compute capability with tensor cores for E4M3 (Ada)."""
MOST_WEIGHTS = 2**31
"""Offsets within a weight are 32 bits wide."""


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def why_not_shape(
    out_features: int, in_features: int, groups: int, group_index: Tensor | None = None
) -> str | None:
    """Explain why the kernels do not support a weight of this shape; None if they do.

    Args:
        out_features: N.
        in_features: K.
        groups: groups per row.
        group_index: int32 `[K]`, or None for consecutive groups.
    """
    if not has_triton():
        return "Triton is not installed"
    if (reason := why_not_groups(in_features, groups)) is not None:
        return reason
    if group_index is not None:
        return "its inputs are in the order of a group index"
    padded = out_features + -out_features % ROWS
    if padded * in_features >= MOST_WEIGHTS:
        return f"{padded * in_features} weights; the Triton kernels take fewer than {MOST_WEIGHTS}"
    return None


def why_not(
    scales: Tensor, zero_points: Tensor, in_features: int, group_index: Tensor | None = None
) -> str | None:
    """Explain why the kernels do not support an integer weight; None if they do.

    Args:
        scales: float `[N, G]`.
        zero_points: uint8 `[N, G]`.
        in_features: K.
        group_index: int32 `[K]`, or None for consecutive groups.
    """
    rows, groups = scales.shape
    reason = why_not_shape(rows, in_features, groups, group_index)
    return reason or why_not_scales(scales, zero_points)


@dataclass(frozen=True)
class TritonLinear:
    """One packed weight."""

    weight: PackedWeight
    bias: Tensor | None
    name: ClassVar[str] = "triton"

    def __call__(self, x: Tensor, input_scale: Tensor | float | None = None) -> list[Tensor]:
        """Compute `x @ W' + bias`, with the interface of `CpuLinear` for one weight.

        Args:
            x: `[..., K]` float.
            input_scale: None for float activations. Otherwise `x` is quantized, to int8 or, with a
                weight in E4M3, to E4M3: with this scale, or with one scale per row if it is 0.

        Returns:
            A list of one tensor, `[..., N]` in the dtype of `x`.

        Raises:
            RuntimeError: `x` requires a gradient; the kernels have none.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError("quantized layers on Triton kernels have no gradient; use no_grad()")
        rows = x.reshape(-1, x.shape[-1])
        if rows.stride(-1) != 1:
            rows = rows.contiguous()
        y = self._multiply(rows, input_scale)
        return [y.reshape(*x.shape[:-1], self.weight.out_features)]

    def _multiply(self, x: Tensor, input_scale: Tensor | float | None) -> Tensor:
        # Imported on use: the modules import Triton.
        from .byte_products import byte_product
        from .float_products import float_product
        from .token_quantization import quantize_tokens

        if input_scale is None:
            return float_product(x, self.weight, self.bias)
        scale = None
        if input_scale != 0.0:
            scale = torch.as_tensor(input_scale, dtype=torch.float32, device=x.device)
        order, tile = self.weight.kind, self.weight.tile
        if order != "e4m3":
            levels, scales = quantize_tokens(x, torch.int8, scale, order=order, tile=tile)
        elif _multiplies_e4m3(x.device):
            dtype = torch.float8_e4m3fn
            levels, scales = quantize_tokens(
                x, dtype, scale, levels="e4m3", order="bytes", tile=tile
            )
        else:
            # The numbers of E4M3 are exact in bf16, on whose tensor cores their products are too.
            levels, scales = quantize_tokens(x, torch.bfloat16, scale, levels="e4m3")
            return float_product(levels, self.weight, self.bias, scales, x.dtype)
        return byte_product(levels, scales, self.weight, x.dtype, self.bias)


def _multiplies_e4m3(device: torch.device) -> bool:
    """Whether a device has tensor cores for E4M3."""
    return capability_of(device) >= FIRST_FP8
