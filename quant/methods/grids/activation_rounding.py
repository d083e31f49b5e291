"""Activations rounded to the levels of a grid, in plain torch.

Engines with hardware for fp8 or fp4 round the inputs of a layer at run time. Here the rounded
numbers are computed exactly and multiplied in float32, which differs from such hardware in the
order of summation only: its products of two levels are exact too.

compressed-tensors rounds alike (`compute_dynamic_scales_and_zp`), but computes scales in the dtype
of the input; engines and this module do so in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...recipe.scheme import TableScheme
from ..affine import choose_input_scale
from .group_scales import SCALES, divisor_of
from .levels import round_to_levels

_LEAST = torch.finfo(torch.float32).tiny


def rounded_activations(
    x: Tensor, scheme: TableScheme, input_scale: Tensor | None = None
) -> Tensor:
    """Round activations as the scheme says.

    Dynamic scales map the largest magnitude of a token, or of each of its groups, to the largest
    level. With a static scale larger magnitudes saturate.

    Args:
        x: `[..., K]` float. A group that is not finite becomes NaN.
        scheme: with activations.
        input_scale: float32 scalar: the static scale, or the divisor of scales in E4M3; see
            `TableWeight.input_scale`.

    Returns:
        float32, same shape.
    """
    table, values = scheme.table, x.float()
    if scheme.activations == "static":
        assert input_scale is not None
        return round_to_levels(values / input_scale, table) * input_scale
    width = x.shape[-1] if scheme.input_group == -1 else scheme.input_group
    grouped = values.reshape(*x.shape[:-1], -1, width)
    largest = grouped.abs().amax(dim=-1, keepdim=True)
    form = SCALES[table.scale_form]
    if form.has_divisor:
        assert input_scale is not None
        scales = form.round(form.from_range(largest * input_scale, table)) / input_scale
    elif table.scale_form == "float":
        scales = form.from_range(largest, table).clamp_min(_LEAST)  # kept in float32
    else:
        scales = form.round(form.from_range(largest, table))
    scales = torch.where(largest.isfinite(), scales, torch.nan)
    return (round_to_levels(grouped / scales, table) * scales).reshape(x.shape)


def calibrated_input_scale(largest: float, scheme: TableScheme) -> Tensor | None:
    """Choose the scale of a calibrated input, see `TableWeight.input_scale`.

    Args:
        largest: largest magnitude of the input during calibration.
        scheme: with activations.

    Returns:
        float32 scalar; None if the scheme needs no calibrated scale.

    Raises:
        ValueError: see `choose_input_scale`.
    """
    if not scheme.calibrates_input:
        return None
    if scheme.activations == "static":
        return choose_input_scale(largest, scheme.table.largest)
    return torch.tensor(divisor_of(largest, scheme.table))


@dataclass(frozen=True)
class CalibrationRounding:
    """Rounds inputs during calibration as a layer of a scheme will, see `InputRounding`.

    The range of all samples, from which a calibrated scale follows, is not known yet: that of the
    given inputs stands for it. Levels and scales are float formats, whose relative rounding errors
    depend on such a factor only through its phase within a power of two.
    """

    scheme: TableScheme

    def __call__(self, inputs: Tensor) -> Tensor:
        """Round `[..., K]`; same shape and dtype.

        Rounding the result to a dtype of 16 bits keeps products with it fast, at a relative error
        of 2**-9, small beside the 2**-4 of E4M3.
        """
        if not inputs.numel():
            return inputs
        largest = float(inputs.abs().max())
        if not math.isfinite(largest):
            return inputs  # the driver refuses it, by its range
        scale = calibrated_input_scale(largest, self.scheme)
        scale = None if scale is None else scale.to(inputs.device)
        return rounded_activations(inputs, self.scheme, scale).to(inputs.dtype)
