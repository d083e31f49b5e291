"""A linear layer with static int8 activations, computed with integer arithmetic alone.

arXiv 1712.05877, section 2.2, without zero points: with input scale S2, weight scales S1 (one per
output channel) and output scale S3, a channel is

    out = saturate(M * (bias + sum over k of weight[k] * level[k])),    M = S1 * S2 / S3,

where levels and outputs are int8, sums and the bias (scale S1 * S2) int32, and M is a fixed-point
number of `fixed_point.py`. The float scales are used when the layer is built, never for an input.

NumPy's int64 products are the specification. Nothing here calls a kernel.

Letters: N = out_features, K = in_features, T = tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..methods.affine import QuantizedWeight
from ..recipe.scheme import QuantScheme, Scheme
from .fixed_point import FRACTION_BITS, Integers, Reals, check_int32, fixed_point, multiply

LOWEST, HIGHEST = -128, 127
"""Levels of int8."""


def is_static_w8a8(scheme: Scheme | None) -> bool:
    """Return whether a layer has int8 weights per output channel and static int8 activations."""
    return (
        isinstance(scheme, QuantScheme)
        and (scheme.bits, scheme.group_size) == (8, -1)
        and scheme.symmetric
        and scheme.activations == "static"
    )


@dataclass(frozen=True)
class IntegerLayer:
    """The integers of one layer."""

    weights: Integers
    """`[N, K]`, -128 to 127."""
    bias: Integers
    """`[N]`, int32's range, in units of S1 * S2."""
    multipliers: Integers
    """`[N]`, M0; negative where S1 is."""
    shifts: Integers
    """`[N]`, n."""

    @classmethod
    def of(cls, weight: QuantizedWeight, bias: Tensor | None, output_scale: float) -> IntegerLayer:
        """Convert a layer.

        Args:
            weight: see `is_static_w8a8`.
            bias: `[N]` or None.
            output_scale: S3, positive.

        Raises:
            ValueError: a multiplier or the bias is out of range.
        """
        factors = accumulator_scales(weight)
        multipliers, shifts = fixed_point(np.abs(factors) / output_scale)
        integers = np.zeros(weight.out_features, np.int64)
        if bias is not None:
            integers = np.rint(array(bias) / factors).astype(np.int64)
        try:
            check_int32(integers, "a bias in units of weight scale times input scale")
        except OverflowError as error:
            raise ValueError(f"{error}; keep this layer in float") from None
        signs = np.sign(factors).astype(np.int64)
        return cls(centred_weights(weight), integers, multipliers * signs, shifts)

    @classmethod
    def from_table(cls, weight: QuantizedWeight, table: Mapping[str, Any]) -> IntegerLayer:
        """Combine the weights of a layer with constants that were computed before.

        Args:
            weight: see `is_static_w8a8`.
            table: `multipliers`, `shifts` and `bias` as of `table`.

        Raises:
            ValueError: an entry is missing, has another length, or is out of range.
        """
        constants = [_column(table, key, weight.out_features) for key in _RANGES]
        multipliers, shifts, bias = constants
        return cls(centred_weights(weight), bias, multipliers, shifts)

    def table(self) -> dict[str, list[int]]:
        """Return the constants that hardware needs beside the weights."""
        return {key: getattr(self, key).tolist() for key in _RANGES}

    def accumulate(self, levels: Integers) -> Integers:
        """Sum the products of int8 levels `[T, K]` and weights, without the bias, `[T, N]`.

        Raises:
            OverflowError: a sum does not fit int32.
        """
        sums = levels @ self.weights.T
        check_int32(sums, "an accumulator")
        return sums

    def rescale(self, sums: Integers) -> Integers:
        """Add the bias to sums `[T, N]` and convert them to output levels, int8's range.

        Raises:
            OverflowError: a sum with its bias does not fit int32.
        """
        return saturated(multiply(sums + self.bias, self.multipliers, self.shifts))


_RANGES = {
    "multipliers": (1 << (FRACTION_BITS - 1), (1 << FRACTION_BITS) - 1),
    "shifts": (-FRACTION_BITS, 62),
    "bias": (-(1 << 31), (1 << 31) - 1),
}
"""Entries of a table with the ranges of their values; of multipliers, of their magnitudes."""


def _column(table: Mapping[str, Any], key: str, length: int) -> Integers:
    values, (low, high) = table.get(key), _RANGES[key]
    if not isinstance(values, list) or len(values) != length:
        actual = f"{len(values)} entries" if isinstance(values, list) else "no list"
        raise ValueError(f"{key}: {actual}; expected {length}, one per output channel")
    for value in values:
        size = abs(value) if key == "multipliers" and type(value) is int else value
        if type(value) is not int or not low <= size <= high:
            raise ValueError(f"{key}: {value!r}; allowed: whole numbers, {low} to {high}")
    return np.array(values, np.int64)


def centred_weights(weight: QuantizedWeight) -> Integers:
    """Return the stored integers minus their zero points, `[N, K]`."""
    stored = weight.integers.cpu().numpy().astype(np.int64)
    centred: Integers = stored - weight.zero_points.cpu().numpy().astype(np.int64)
    return centred


def accumulator_scales(weight: QuantizedWeight) -> Reals:
    """Return the scale of each channel's sums, S1 * S2, float64 `[N]`."""
    assert weight.input_scale is not None
    scales: Reals = array(weight.scales)[:, 0] * float(weight.input_scale)
    return scales


def input_levels(inputs: NDArray[np.float32], input_scale: float) -> Integers:
    """Round float inputs `[T, K]` to int8 levels, half to even; larger magnitudes saturate.

    An engine without float arithmetic would get these levels from the layer before.
    """
    return saturated(np.rint(inputs / np.float32(input_scale)).astype(np.int64))


def saturated(levels: Integers) -> Integers:
    """Clamp to the range of int8."""
    return np.clip(levels, LOWEST, HIGHEST)


def array(values: Tensor) -> Reals:
    """Convert a tensor to a float64 array."""
    converted: Reals = values.detach().double().cpu().numpy()
    return converted
