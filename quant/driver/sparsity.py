"""Shares of zeros in the layers of steps with a sparsity mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ..compressed_weight import CompressedWeight

if TYPE_CHECKING:
    from ..steps.step import Step
    from .report import LayerReport


def share_of_zeros(weight: CompressedWeight) -> float:
    """Compute the fraction of weights that are zero, by the mask or by rounding."""
    values = weight.dequantize(torch.bfloat16)  # with the range of float32: no scale becomes zero
    return 1 - int(values.count_nonzero()) / values.numel()


def describe_masks(layers: Sequence[LayerReport]) -> list[dict[str, Any]]:
    """Describe the masks of the steps as JSON values.

    Returns:
        For each step with a mask `targets`, `keep`, `score`, the number of its `layers`, and
        `zeros`, the fraction of all their weights that are zero.
    """
    of_steps: dict[Step, list[LayerReport]] = {}
    for layer in layers:
        if layer.row.step is not None and layer.row.step.mask is not None:
            of_steps.setdefault(layer.row.step, []).append(layer)
    masks = []
    for step, members in of_steps.items():
        assert step.mask is not None
        weights = sum(layer.row.spec.weights for layer in members)
        zeros = sum(layer.values["zeros"] * layer.row.spec.weights for layer in members)
        masks.append(
            {
                "targets": list(step.targets),
                "keep": step.mask.keep,
                "score": step.mask.score,
                "layers": len(members),
                "zeros": zeros / weights,
            }
        )
    return masks
