"""Which kernel computes which quantized layer, decided once after a model is loaded.

On the CPU a layer is laid out for the compiled kernels if they take it, and layers that read the
same input (q, k and v; gate and up) then run in one call. On a GPU the Triton kernels compute it.
Everything else stays with the reference kernel, and the reason is kept: never a silent choice.
"""

from __future__ import annotations

import logging
from collections import Counter

from ..model.families import family_of
from ..model.qwen_vl import QwenVL
from .kernels import cpu
from .linear import Fused, QuantLinear, can_fuse
from .targets import quantized_layers

logger = logging.getLogger(__name__)
REFERENCE = "reference"


def prepare_(model: QwenVL) -> dict[str, str]:
    """Lay out the quantized layers of a model for the fastest kernels that take them.

    Returns:
        For each layer by name the kernels' name, or ``reference: `` and why.

    Raises:
        ValueError: the environment variable VLPRESS_KERNEL asks for what cannot run here.
    """
    layers = quantized_layers(model)
    kernels = cpu.chosen_kernels() if layers else ""
    chosen = {}
    for name, layer in layers.items():
        reason = _prepare(layer, kernels)
        chosen[name] = layer.kernel if reason is None else f"{REFERENCE}: {reason}"
    if not isinstance(kernels, str):
        _fuse(model, kernels)
    for reason, count in Counter(k for k in chosen.values() if k.startswith(REFERENCE)).items():
        logger.warning("%d of %d quantized layers: %s", count, len(layers), reason)
    return chosen


def round_inputs_(model: QwenVL) -> None:
    """Round the inputs of weight-only layers to int8 as well, a scale for each token.

    For speed, at a cost that no recipe has measured: an evaluation of it says so.

    Raises:
        ValueError: no layer is quantized.
    """
    layers = quantized_layers(model)
    if not layers:
        raise ValueError(
            "activations int8: the model has no quantized layers; give a quantized checkpoint"
        )
    for layer in layers.values():
        layer.rounds_inputs = layer.scheme.activations == "none"


def _prepare(layer: QuantLinear, kernels: cpu.Kernels | str) -> str | None:
    """Give a layer its kernel; returns why it keeps the reference."""
    if isinstance(kernels, str) and (layer.on_cpu or kernels == cpu.UNWANTED):
        return kernels
    if (reason := layer.why_not()) is not None:
        return reason
    if layer.on_cpu and not isinstance(kernels, str):
        layer.prepare(kernels)
    else:
        layer.use_triton()
    return None


def _fuse(model: QwenVL, kernels: cpu.Kernels) -> None:
    for stage in family_of(model.config).stages:
        for path in stage.blocks(model.config):
            for members in stage.fused:
                layers = [model.get_submodule(f"{path}.{member}") for member in members]
                prepared = tuple(layer for layer in layers if isinstance(layer, QuantLinear))
                if len(prepared) == len(layers) and can_fuse(prepared):
                    prepared[0].fused = Fused(prepared, kernels)
