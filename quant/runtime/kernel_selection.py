"""Which kernel computes which quantized layer, decided once after a model is loaded.

On the CPU a layer is laid out for the compiled kernels if they take it, and layers that read the
same input (q, k and v; gate and up) then run in one call. On a GPU the Triton kernels compute it.
Everything else stays with the reference kernel, and the reason is kept: never a silent choice.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from ...model.families import family_of
from ...model.qwen_vl import QwenVL
from ...model.text import DecoderLayer
from ..kernels import bf16_linear, library
from ..methods.affine import QuantizedWeight
from ..methods.rtn import rtn
from ..recipe.scheme import QuantScheme
from ..targets import quantized_layers
from .fused_layer import FusedDecoderLayer
from .linear import FloatLinear, FusedLinears, QuantLinear, can_fuse

logger = logging.getLogger(__name__)
HEAD_GROUP = 128
HEAD_ROWS = 8192  # of the head at a time: in float32 the whole takes gigabytes


def prepare_(model: QwenVL) -> dict[str, str]:
    """Lay out the quantized layers of a model for the fastest kernels that take them.

    Returns:
        For each layer by name the kernels' name, or ``reference: `` and why.

    Raises:
        ValueError: the environment variable VLPRESS_KERNEL asks for what cannot run here.
    """
    layers = quantized_layers(model)
    kernels = library.chosen_kernels() if layers else ""
    reasons = {name: _prepare(layer, kernels) for name, layer in layers.items()}
    chosen = {
        name: layers[name].kernel if reason is None else f"reference: {reason}"
        for name, reason in reasons.items()
    }
    if not isinstance(kernels, str):
        _fuse(model, kernels)
        _join_layers(model)
        if not library.has_threads():
            logger.warning("torch has no OpenMP here: the CPU kernels run on one thread")
    _report([reasons.get(name) for name in layers])
    return chosen


def _report(reasons: Sequence[str | None]) -> None:
    """Warn of layers that keep the reference."""
    for reason, count in Counter(reason for reason in reasons if reason is not None).items():
        logger.warning("%d of %d quantized layers: reference: %s", count, len(reasons), reason)


def speed_head_(model: QwenVL) -> None:
    """Let a head in bf16 be read at the speed of memory when there are few tokens, on the CPU.

    Sums are rounded as torch rounds them but added in another order.

    Raises:
        ValueError: the environment variable VLPRESS_KERNEL asks for what cannot run here.
    """
    product = bf16_linear.select_linear(model.device)
    if model.dtype != torch.bfloat16 or not isinstance(product, bf16_linear.Bf16Linear):
        return
    if model.lm_head is None:
        model.head_product = product
    elif isinstance(model.lm_head, nn.Linear):
        model.lm_head = FloatLinear(model.lm_head, product)


def speed_layers_(model: QwenVL, device: torch.device) -> None:
    """Let layers in bf16 run on the compiled kernels if the processor has no units for bf16.

    Torch multiplies bf16 several times slower there than float32. As `speed_head_` otherwise.

    Args:
        model: perhaps without weights.
        device: where it will run.

    Raises:
        ValueError: as `speed_head_`.
    """
    product = bf16_linear.select_linear(device)
    if model.dtype != torch.bfloat16 or not isinstance(product, bf16_linear.Bf16Linear):
        return
    for module in list(model.modules()) if product.uses_gemm else ():
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, FloatLinear(child, product))


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


def round_head_(model: QwenVL, bits: int) -> None:
    """Round the output head to groups of 128; a shared token embedding stays as it is beside it.

    No checkpoint format holds a head of its own beside a tied embedding, so this is done to the
    model in memory, and an evaluation of it says so.

    Args:
        model: in float, at least its head.
        bits: 4 or 8.

    Raises:
        ValueError: the head is quantized already.
    """
    head = model.model.embed_tokens if model.lm_head is None else model.lm_head
    if not isinstance(head, nn.Linear | nn.Embedding):
        raise ValueError("head: it is quantized already; leave the option out")
    scheme = QuantScheme(bits, HEAD_GROUP)
    parts = [rtn(rows, scheme) for rows in torch.split(head.weight.detach(), HEAD_ROWS)]
    weight = QuantizedWeight(
        torch.cat([part.integers for part in parts]),
        torch.cat([part.scales for part in parts]),
        torch.cat([part.zero_points for part in parts]),
        scheme,
    )
    layer = QuantLinear(weight)
    _report([_prepare(layer, library.chosen_kernels())])
    model.lm_head = layer


def _prepare(layer: QuantLinear, kernels: library.Kernels | str) -> str | None:
    """Give a layer its kernel; returns why it keeps the reference."""
    if isinstance(kernels, str) and (layer.on_cpu or kernels == library.REFERENCE_REQUESTED):
        return kernels
    if (reason := layer.why_not()) is not None:
        return reason
    if layer.on_cpu and not isinstance(kernels, str):
        layer.prepare(kernels)
    else:
        layer.use_triton()
    return None


def _fuse(model: QwenVL, kernels: library.Kernels) -> None:
    for stage in family_of(model.config).stages:
        for path in stage.blocks(model.config):
            for members in stage.fused:
                layers = [model.get_submodule(f"{path}.{member}") for member in members]
                prepared = tuple(layer for layer in layers if isinstance(layer, QuantLinear))
                if len(prepared) == len(layers) and can_fuse(prepared):
                    prepared[0].fused = FusedLinears(prepared, kernels)


def _join_layers(model: QwenVL) -> None:
    """Let decoder layers that are quantized throughout run as one."""
    for layer in model.model.layers:
        assert isinstance(layer, DecoderLayer)
        layer.fused_layer = FusedDecoderLayer.of(layer)
