"""Affine quantization of weight matrices: choose a grid, quantize, dequantize.

Letters: N = out_features, K = in_features, G = groups per row, `K == G * width`.

Integers are unsigned with a zero point (z = 8 for symmetric int4). A symmetric scale is
`max|W| / ((2**bits - 1) / 2)`: the grid, which has one level more on the negative side, then
exceeds the group's range by half a step there and falls short by half a step on the positive side.
A signed scale avoids this: its sign puts the side with one more level where the group's largest
weight is.

Scales are bf16 values that fp16 represents exactly. A checkpoint can therefore store them in either
dtype, and a model can run in either, with the same values.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..compressed_weight import CompressedWeight
from ..recipe.scheme import QuantScheme

if TYPE_CHECKING:
    from ..runtime.compressed_linear import CompressedLinear

MAX_SCALE = 65280.0
"""Largest bf16 number below the fp16 maximum of 65504."""
MIN_SCALE = 2.0**-24
"""Smallest positive fp16 number (subnormal); bf16 represents it too."""


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized matrix, unpacked; file formats and kernel layouts are derived from it."""

    integers: Tensor
    """uint8 `[N, K]`, values 0 to `2**bits - 1`."""
    scales: Tensor
    """float32 `[N, G]`, not zero; a negative scale mirrors the grid."""
    zero_points: Tensor
    """uint8 `[N, G]`."""
    scheme: QuantScheme
    group_index: Tensor | None = None
    """int32 `[K]`, the group of each input feature; None = consecutive groups."""
    input_scale: Tensor | None = None
    """float32 scalar: the scale of the int8 input, with static activations only."""

    @property
    def out_features(self) -> int:
        """Number of rows."""
        return self.integers.shape[0]

    @property
    def in_features(self) -> int:
        """Number of columns."""
        return self.integers.shape[1]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Compute the float matrix `[N, K]` in float32, rounded once to `dtype`."""
        return dequantize(self.integers, self.scales, self.zero_points, dtype, self.group_index)

    def tensors(self) -> dict[str, Tensor]:
        """See `CompressedWeight.tensors`."""
        named = {
            "integers": self.integers,
            "scales": self.scales,
            "zero_points": self.zero_points,
            "group_index": self.group_index,
            "input_scale": self.input_scale,
        }
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def with_input_range(self, largest: float) -> QuantizedWeight:
        """See `CompressedWeight.with_input_range`."""
        if not self.scheme.calibrates_input:
            return self
        return replace(self, input_scale=choose_input_scale(largest).to(self.scales.device))

    def calibration_layer(self, bias: Tensor | None, dtype: torch.dtype | None) -> CompressedLinear:
        """See `CompressedWeight.calibration_layer`."""
        from ..runtime.unpacked_linear import UnpackedLinear

        return UnpackedLinear(self, bias, dtype)

    def inference_layer(self, bias: Tensor | None) -> CompressedLinear:
        """See `CompressedWeight.inference_layer`."""
        from ..runtime.linear import QuantLinear

        return QuantLinear(self, bias)

    def equals(self, other: CompressedWeight) -> bool:
        """Whether scheme, integers, scales, zero points and group order are identical."""
        if not isinstance(other, QuantizedWeight):
            return False
        scale, other_scale = self.input_scale, other.input_scale
        if scale is None or other_scale is None:
            same_input_scale = scale is other_scale
        else:
            same_input_scale = torch.equal(scale, other_scale)
        return (
            same_input_scale
            and self.scheme == other.scheme
            and torch.equal(self.integers, other.integers)
            and torch.equal(self.scales, other.scales)
            and torch.equal(self.zero_points, other.zero_points)
            and torch.equal(self.column_groups(), other.column_groups())
        )

    def column_groups(self) -> Tensor:
        """Return the group of every input feature, int32 `[K]`."""
        if self.group_index is not None:
            return self.group_index
        width = self.in_features // self.scales.shape[1]
        columns = torch.arange(self.in_features, dtype=torch.int32, device=self.integers.device)
        return columns // width


def check_finite(weight: Tensor) -> None:
    """Refuse a weight that is not finite.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weight has values that are not finite; the checkpoint is broken")


def round_scales(scales: Tensor) -> Tensor:
    """Round scales to the nearest numbers that bf16 and fp16 both represent exactly.

    bf16 has 8 significant bits, and the spacing of fp16 numbers is at least 2**-24. Rounding to
    bf16 and then to fp16 suffices: above 2**-17 fp16 has all bits of a bf16 number, and below it
    the spacing of fp16 decides.

    Args:
        scales: any float dtype and shape.

    Returns:
        float32, same shape and signs; magnitudes are at least 2**-24.

    Raises:
        ValueError: a scale is not finite or too large for fp16.
    """
    magnitudes = scales.abs().to(torch.bfloat16)
    if not bool(torch.isfinite(magnitudes).all()) or bool((magnitudes > MAX_SCALE).any()):
        raise ValueError(
            f"a scale of {float(scales.abs().max()):g} is outside the range of fp16 (at most "
            f"{MAX_SCALE:g}); the weight is broken or needs a wider format"
        )
    rounded = magnitudes.to(torch.float16).to(torch.float32).clamp_min(MIN_SCALE)
    return rounded.copysign(scales.float())


def choose_input_scale(largest: float, levels: float = 127) -> Tensor:
    """Choose the scale of a static input, `largest / levels`, see `round_scales`.

    Args:
        largest: largest magnitude of the input during calibration; 0 gives scale 1.
        levels: largest level: 127 for int8.

    Returns:
        float32 scalar.

    Raises:
        ValueError: `largest` is not finite, or the scale is out of the fp16 range.
    """
    if not 0 <= largest <= levels * MAX_SCALE:
        raise ValueError(
            f"the inputs reach {largest:g}; a static scale covers at most {levels * MAX_SCALE:g}; "
            "use dynamic activations, or calibrate in bf16 or fp32"
        )
    return round_scales(torch.tensor(largest / levels if largest else 1.0))


def choose_qparams(
    weight: Tensor, scheme: QuantScheme, *, signed: bool = False
) -> tuple[Tensor, Tensor]:
    """Choose scales and zero points from each group's range.

    Symmetric: `max|W| / ((2**bits - 1) / 2)` and the fixed midpoint; signed: the scale with which
    the weight of largest magnitude is exactly the level 0. Asymmetric: the range, extended to
    contain zero, over `2**bits - 1`. A group of zeros gets scale 1.

    Args:
        weight: `[N, K]`, finite.
        scheme: the grid.
        signed: whether symmetric scales may be negative; asymmetric scales never are.

    Returns:
        scales float32 `[N, G]` (see `round_scales`) and zero_points uint8 `[N, G]`.

    Raises:
        ValueError: a weight is not finite, the width does not divide into groups, or a scale is
            out of the fp16 range.
    """
    check_finite(weight)
    rows, columns = weight.shape
    grouped = weight.float().reshape(rows, scheme.groups(columns), scheme.width(columns))
    if scheme.symmetric and signed:
        # Level 0 is `midpoint` steps below zero, one more than the top level above it: negating the
        # scale of a group with a positive extreme gives that extreme the additional level.
        largest = grouped.gather(-1, grouped.abs().argmax(dim=-1, keepdim=True))[..., 0]
        scales = -largest / scheme.midpoint
        empty = largest == 0
    elif scheme.symmetric:
        largest = grouped.abs().amax(dim=-1)
        scales = largest / (scheme.max_level / 2)
        empty = largest == 0
    else:
        low = grouped.amin(dim=-1).clamp_max(0)
        high = grouped.amax(dim=-1).clamp_min(0)
        scales = (high - low) / scheme.max_level
        empty = high == low
    scales = round_scales(torch.where(empty, torch.ones_like(scales), scales))
    if scheme.symmetric:
        zero_points = torch.full_like(scales, scheme.midpoint)
    else:
        # From the rounded scales: the zero must be a level of the grid that is stored.
        zero_points = (-low / scales).round().clamp(0, scheme.max_level)
    return scales, zero_points.to(torch.uint8)


def quantize(weight: Tensor, scales: Tensor, zero_points: Tensor, scheme: QuantScheme) -> Tensor:
    """Round each weight to the nearest level of its group (ties to even), clamped to the grid.

    Args:
        weight: `[N, K]`.
        scales: float32 `[N, G]`.
        zero_points: uint8 `[N, G]`.
        scheme: the grid.

    Returns:
        uint8 `[N, K]`.
    """
    rows, groups = scales.shape
    grouped = weight.float().reshape(rows, groups, -1)
    levels = (grouped / scales[..., None]).round() + zero_points[..., None]
    return levels.clamp(0, scheme.max_level).to(torch.uint8).reshape(weight.shape)


def dequantize(
    integers: Tensor,
    scales: Tensor,
    zero_points: Tensor,
    dtype: torch.dtype = torch.float32,
    group_index: Tensor | None = None,
) -> Tensor:
    """Compute `scale * (q - zero_point)` in float32, rounded once to `dtype`.

    Args:
        integers: uint8 `[N, K]`.
        scales: `[N, G]`.
        zero_points: `[N, G]`.
        dtype: of the result.
        group_index: int32 `[K]`, or None for consecutive groups.

    Returns:
        `[N, K]`.
    """
    if group_index is not None:
        columns = group_index.long()
        centred = integers.float() - zero_points.float()[:, columns]
        return (centred * scales.float()[:, columns]).to(dtype)
    rows, groups = scales.shape
    grouped = integers.float().reshape(rows, groups, -1)
    centred = grouped - zero_points.float()[..., None]
    return (centred * scales.float()[..., None]).reshape(integers.shape).to(dtype)
