"""Select a kernel for every quantized layer, once after a model is loaded.

On the CPU, the weights of supported layers are converted to the layout of the compiled kernels, and
layers that share an input (q, k and v; gate and up) are fused into one call. On a GPU, the Triton
kernels compute them. All other layers fall back to the reference kernel, with a warning that gives
the reason.
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
from ..kernels.delta_rule import CpuDeltaRule
from ..methods.rtn import rtn_by_rows
from ..recipe.scheme import QuantScheme
from ..targets import compressed_linears, quantized_layers
from .compressed_linear import CompressedLinear
from .fused_layer import FusedDecoderLayer
from .linear import FloatLinear, QuantLinear
from .tiled_linear import FusedLinears, TiledLinear, can_fuse

logger = logging.getLogger(__name__)
HEAD_GROUP = 128
"""Group size of a head that is quantized at load time."""


def prepare_(model: QwenVL) -> dict[str, str]:
    """Prepare the quantized layers of a model for the fastest kernels that support them.

    Returns:
        For each layer by name the name of its kernel, or `reference: ` with the reason.

    Raises:
        ValueError: the environment variable VLPRESS_KERNEL names a kernel that cannot run here.
    """
    layers = compressed_linears(model)
    kernels = library.chosen_kernels() if layers else ""
    reasons = {name: _prepare(layer, kernels) for name, layer in layers.items()}
    chosen = {
        name: layers[name].kernel if reason is None else f"reference: {reason}"
        for name, reason in reasons.items()
    }
    if not isinstance(kernels, str):
        _fuse_linears(model, kernels)
        _fuse_decoder_layers(model)
        if not library.has_threads():
            logger.warning("torch has no OpenMP here: the CPU kernels run on one thread")
    _report([reasons.get(name) for name in layers])
    return chosen


def _report(reasons: Sequence[str | None]) -> None:
    """Warn of layers that fall back to the reference kernel."""
    for reason, count in Counter(reason for reason in reasons if reason is not None).items():
        logger.warning("%d of %d quantized layers: reference: %s", count, len(reasons), reason)


def select_layer_kernel(layer: CompressedLinear) -> str | None:
    """Select the kernel of a single layer, in place.

    Returns:
        Why it falls back to the reference kernel; None if it does not.

    Raises:
        ValueError: see `prepare_`.
    """
    return _prepare(layer, library.chosen_kernels())


def accelerate_head_(model: QwenVL) -> None:
    """Compute a bf16 output head with the compiled kernels, on the CPU.

    For few tokens torch reads the head, the largest weight of a decoding step, more slowly than
    memory allows. Results differ from torch's in the order of summation only.

    Raises:
        ValueError: the environment variable VLPRESS_KERNEL names a kernel that cannot run here.
    """
    product = bf16_linear.select_linear(model.device)
    if model.dtype != torch.bfloat16 or not isinstance(product, bf16_linear.Bf16Linear):
        return
    if model.lm_head is None:
        model.head_product = product
    elif isinstance(model.lm_head, nn.Linear):
        model.lm_head = FloatLinear(model.lm_head, product)


def accelerate_layers_(model: QwenVL, device: torch.device) -> None:
    """Compute bf16 layers with the compiled kernels on processors without bf16 instructions.

    There, torch multiplies bf16 several times slower than float32. Results as in
    `accelerate_head_`.

    Args:
        model: may be on `meta`.
        device: on which it will run.

    Raises:
        ValueError: see `accelerate_head_`.
    """
    product = bf16_linear.select_linear(device)
    if model.dtype != torch.bfloat16 or not isinstance(product, bf16_linear.Bf16Linear):
        return
    for module in list(model.modules()) if product.uses_gemm else ():
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, FloatLinear(child, product))


def accelerate_linear_attention_(model: QwenVL) -> None:
    """Compute tokens of linear attention one by one with the compiled kernel, on the CPU.

    Results differ from torch's in the order of summation only.

    Raises:
        ValueError: see `accelerate_head_`.
    """
    kernels = library.chosen_kernels()
    if isinstance(kernels, str) or model.device.type != "cpu":
        return
    for layer in model.model.layers:
        if isinstance(layer, DecoderLayer) and layer.linear_attn is not None:
            layer.linear_attn.step_rule = CpuDeltaRule(kernels)


def round_inputs_(model: QwenVL) -> None:
    """Quantize the inputs of weight-only layers to int8, with a scale per token.

    This is faster, but no recipe has measured the loss; evaluations record it in the fingerprint.

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
    """Quantize the output head by rounding, with groups of 128; a tied embedding stays in float.

    It is quantized in memory; `tie = false` in a recipe stores it. Evaluations record it in the
    fingerprint.

    Args:
        model: with a float head.
        bits: 4 or 8.

    Raises:
        ValueError: the head is quantized already.
    """
    head = model.model.embed_tokens if model.lm_head is None else model.lm_head
    if not isinstance(head, nn.Linear | nn.Embedding):
        raise ValueError("head: it is quantized already; leave the option out")
    layer = QuantLinear(rtn_by_rows(head.weight.detach(), QuantScheme(bits, HEAD_GROUP)))
    _report([select_layer_kernel(layer)])
    model.lm_head = layer


def _prepare(layer: CompressedLinear, kernels: library.Kernels | str) -> str | None:
    """Select the kernel of a layer; returns why it falls back to the reference, or None."""
    if isinstance(kernels, str) and (layer.on_cpu or kernels == library.REFERENCE_REQUESTED):
        return kernels
    if (reason := layer.why_not()) is not None:
        return reason
    layer.select_kernel(kernels if layer.on_cpu and not isinstance(kernels, str) else None)
    return None


def _fuse_linears(model: QwenVL, kernels: library.Kernels) -> None:
    """Fuse prepared layers that share an input, where their grids allow it."""
    for stage in family_of(model.config).stages:
        for index, path in enumerate(stage.blocks(model.config)):
            for members in stage.fused_groups(model.config, index):
                layers = [model.get_submodule(f"{path}.{member}") for member in members]
                prepared = tuple(layer for layer in layers if isinstance(layer, TiledLinear))
                if len(prepared) == len(layers) and can_fuse(prepared):
                    prepared[0].fused = FusedLinears(prepared, kernels)


def _fuse_decoder_layers(model: QwenVL) -> None:
    """Fuse decoder layers in which every linear layer is quantized."""
    for layer in model.model.layers:
        if isinstance(layer, DecoderLayer):  # the kernel computes no others
            layer.fused_layer = FusedDecoderLayer.of(layer)
