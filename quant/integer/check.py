"""Comparison of a layer in integer arithmetic with the kernels that compute it in floats.

Two properties are checked for each kernel. Its outputs in the dtype of the activations, rounded to
the int8 grid of the output, are within one level of the integer outputs. And its outputs in float32
are those of the integer sums, `sum * S1 * S2 + bias`, to a few units in the last place: this finds
differences far below one level, such as a single wrong weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..methods.affine import QuantizedWeight
from ..runtime.kernel_selection import select_layer_kernel
from .fixed_point import Integers
from .layer import (
    HIGHEST,
    IntegerLayer,
    accumulator_scales,
    array,
    input_levels,
    saturated,
)

ROWS = 64
"""Tokens of each layer that are computed in integers."""
FLOAT_TOLERANCE = 2.0**-20
"""Allowed error of a kernel's float32 outputs, relative to the magnitudes that are added."""


def kernels_of(weight: QuantizedWeight, bias: Tensor | None) -> tuple[dict[str, nn.Module], str]:
    """Build the layer for the reference kernel and for the one that is chosen here.

    Returns:
        The layers by name of the kernel, and why there is only the reference; empty otherwise.
    """
    layers: dict[str, nn.Module] = {"reference": weight.inference_layer(bias)}
    fast = weight.inference_layer(bias)
    reason = select_layer_kernel(fast)
    if reason is None:
        layers[fast.kernel] = fast
    return layers, reason or ""


def measure_output_scale(kernel: nn.Module, inputs: Tensor) -> float:
    """Return the scale with which the largest output of the samples is the largest level.

    Args:
        kernel: computes the layer.
        inputs: `[T, K]`.
    """
    largest = float(kernel(inputs.float()).abs().max())
    return largest / HIGHEST if largest else 1.0


def choose_rows(inputs: Tensor, outputs: Tensor) -> Tensor:
    """Choose at most `ROWS` tokens evenly, and the one with the largest output.

    Args:
        inputs: `[T, K]`.
        outputs: `[T, N]`.

    Returns:
        Inputs `[rows, K]`.
    """
    count = min(ROWS, len(inputs))
    chosen = set(torch.linspace(0, len(inputs) - 1, count).round().long().tolist())
    chosen.add(int(outputs.abs().amax(-1).argmax()))
    return inputs[torch.tensor(sorted(chosen), device=inputs.device)]


def check_layer(
    layer: IntegerLayer,
    weight: QuantizedWeight,
    bias: Tensor | None,
    kernels: Mapping[str, nn.Module],
    inputs: Tensor,
    output_scale: float,
) -> dict[str, Any]:
    """Compare a layer in integers with kernels.

    Args:
        layer: the integers.
        weight: the layer as it is stored.
        bias: `[N]` or None.
        kernels: compute the layer in floats, by name.
        inputs: `[rows, K]`, in the dtype of the activations.
        output_scale: S3.

    Returns:
        `agrees`, `rows`, `saturated_inputs` (share), `problem` (overflow of int32, or None), and
        under `kernels` for each of them `largest_difference` (levels), `differing` (share of
        outputs), `float_error` (relative) and `agrees`.
    """
    assert weight.input_scale is not None
    scale = float(weight.input_scale)
    values = inputs.float().cpu().numpy()
    result: dict[str, Any] = {
        "agrees": False,
        "rows": len(inputs),
        "saturated_inputs": float((np.abs(values) > np.float32(127.5 * scale)).mean()),
        "problem": None,
        "kernels": {},
    }
    try:
        sums = layer.accumulate(input_levels(values, scale))
        levels = layer.rescale(sums)
    except OverflowError as error:
        return {**result, "problem": str(error)}
    exact, sizes = _float_outputs(sums, weight, bias)
    for name, kernel in kernels.items():
        outputs = saturated(np.rint(array(kernel(inputs)) / output_scale).astype(np.int64))
        errors = np.abs(array(kernel(inputs.float())) - exact) / sizes
        result["kernels"][name] = _differences(levels, outputs, float(errors.max()))
    result["agrees"] = all(entry["agrees"] for entry in result["kernels"].values())
    return result


def _float_outputs(
    sums: Integers, weight: QuantizedWeight, bias: Tensor | None
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the outputs of exact sums in float64 `[T, N]`, and the magnitudes that are added."""
    products = sums * accumulator_scales(weight)
    added = np.zeros(weight.out_features) if bias is None else array(bias)
    sizes = np.abs(products) + np.abs(added)
    return products + added, np.maximum(sizes, np.finfo(np.float32).tiny)


def _differences(expected: Integers, actual: Integers, float_error: float) -> dict[str, Any]:
    distance = np.abs(expected - actual)
    largest = int(distance.max())
    return {
        "largest_difference": largest,
        "differing": float((distance > 0).mean()),
        "float_error": float_error,
        "agrees": largest <= 1 and float_error <= FLOAT_TOLERANCE,
    }
