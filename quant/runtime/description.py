"""The arithmetic of a loaded model: kernels, activations, head and KV cache."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, cast

import torch

from ...model.kv_quant.scales import digest_scales
from ...model.kv_quant.types import CacheType
from ...model.linear_attention import GatedDeltaNet
from ...model.qwen_vl import QwenVL
from ...model.token_reduction.table import NONE, read_rule
from ..kernels import bf16_linear
from ..kernels.delta_rule import CpuDeltaRule
from ..targets import compressed_linears, quantized_layers
from .adapter import LowRankAdapter
from .compressed_linear import CompressedLinear
from .linear import FloatLinear


def count_kernels(model: QwenVL) -> dict[str, int]:
    """Count the layers per kernel: kernels differ in rounding.

    Includes quantized layers; float layers, single tokens of linear attention and the output head
    if a kernel of vlpress computes them.
    """
    counts = Counter(layer.kernel for layer in compressed_linears(model).values())
    floats = (module for module in model.modules() if isinstance(module, FloatLinear))
    counts.update(module.product.kernels.name for module in floats)
    mixers = (module for module in model.modules() if isinstance(module, GatedDeltaNet))
    rules = (mixer.step_rule for mixer in mixers)
    counts.update(rule.kernels.name for rule in rules if isinstance(rule, CpuDeltaRule))
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


def describe_cache(model: QwenVL) -> str | dict[str, str]:
    """Return `model` for a KV cache in the model's dtype, else its description in JSON values.

    Keys: `type`, `granularity` of the scales, and what else decides the numbers.
    """
    kind, scales = model.cache_type, model.cache_scales
    if kind == "model":
        return kind if scales is None else {"type": kind, "scales": "of the checkpoint, not used"}
    if kind == "fp8":
        of = "unit" if scales is None else f"of the checkpoint, {digest_scales(scales)}"
        return {"type": kind, "granularity": "layer", "scales": of}
    rotation = {"rotation": "hadamard"} if kind == "int4" else {}
    return {"type": kind, "granularity": "token and head", **rotation}


def describe_reduction(model: QwenVL) -> dict[str, Any] | None:
    """Return the rule that drops visual tokens as JSON values; None if all are kept."""
    return None if model.reduction is None else model.reduction.to_dict()


def describe_adapter(model: QwenVL) -> dict[str, Any] | None:
    """Return rank, number of layers and digest of a low-rank adapter; None if there is none."""
    adapters = _adapters(model)
    if not adapters:
        return None
    digest = hashlib.sha256()
    for name, adapter in sorted(adapters.items()):
        for part in adapter.low_rank().tensors().values():
            digest.update(f"{name} {part.dtype} {tuple(part.shape)}\n".encode())
            digest.update(part.contiguous().to("cpu").flatten().view(torch.uint8).numpy().tobytes())
    rank = next(iter(adapters.values())).rank
    return {"rank": rank, "layers": len(adapters), "sha256": digest.hexdigest()}


def adapter_bytes(model: QwenVL) -> dict[str, int]:
    """Return the bytes of the low-rank adapter by layer; empty if there is none."""
    return {
        name: sum(part.nbytes for part in adapter.low_rank().tensors().values())
        for name, adapter in _adapters(model).items()
    }


def _adapters(model: QwenVL) -> dict[str, LowRankAdapter]:
    layers = compressed_linears(model).items()
    return {name: layer.adapter for name, layer in layers if layer.adapter is not None}


def described_rule(described: Mapping[str, Any] | None) -> str:
    """Return the option `reduce` from the result of `describe_reduction` in a fingerprint."""
    return NONE if described is None else read_rule(described, "fingerprint", "visual_tokens").text


def described_type(described: str | Mapping[str, Any] | None) -> CacheType:
    """Return the type of the KV cache from the result of `describe_cache` in a fingerprint.

    Older evaluations stored the type alone, or nothing.
    """
    kind = described["type"] if isinstance(described, Mapping) else described or "model"
    return cast(CacheType, kind)
