"""The arithmetic of a loaded model: kernels, activations and head."""

from __future__ import annotations

from collections import Counter

from ...model.qwen_vl import QwenVL
from ..kernels import bf16_linear
from ..targets import compressed_layers, quantized_layers
from .compressed_linear import CompressedLinear
from .linear import FloatLinear


def count_kernels(model: QwenVL) -> dict[str, int]:
    """Count the layers per kernel: kernels differ in rounding.

    Includes quantized layers, and float layers and the output head if a kernel of vlpress computes
    them.
    """
    counts = Counter(layer.kernel for layer in compressed_layers(model).values())
    floats = (module for module in model.modules() if isinstance(module, FloatLinear))
    counts.update(module.product.kernels.name for module in floats)
    if model.lm_head is None and isinstance(model.head_product, bf16_linear.Bf16Linear):
        counts[model.head_product.kernels.name] += 1
    return dict(sorted(counts.items()))


def describe_activations(model: QwenVL) -> str | None:
    """Return `int8` if activations are rounded without the recipe requiring it; else None."""
    is_rounded = any(layer.rounds_inputs for layer in quantized_layers(model).values())
    return "int8" if is_rounded else None


def describe_head(model: QwenVL) -> str | None:
    """Return the scheme of a quantized output head; None if it is not quantized."""
    return model.lm_head.scheme.label if isinstance(model.lm_head, CompressedLinear) else None
