"""What a score depends on: the setup two models must share, and the identity of each.

Two evaluations may be compared only if everything but the model is equal. The parts that
describe the model (`MODEL_KEYS`) are therefore kept apart from the rest.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..common.differences import differences
from ..common.environment import device_name, versions
from ..model.processing.processor import Processor
from ..model.qwen_vl import QwenVL
from ..model.weight_files import find_weights
from ..quant.kernels import bf16_linear
from ..quant.runtime.linear import FloatLinear, QuantLinear
from ..quant.targets import quantized_layers

MODEL_KEYS = ("model", "quantization", "kernels", "activations", "head", "kv_cache")


def run_fingerprint(
    model: QwenVL,
    processor: Processor,
    *,
    batch_size: int,
    seed: int,
    source: Path | None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Describe a run, its tasks apart.

    Args:
        model: the model as it is evaluated.
        processor: what prepares its inputs.
        batch_size: prompts per batch; even exact batching moves logits in their last digits.
        seed: of the choice that a limit makes.
        source: the checkpoint folder, hashed for the model's identity; None hashes the weights
            in memory instead.
        extra: further parts.
    """
    quantization = model.config.raw.get("quantization_config")
    return {
        "pixels": {
            "min": processor.min_pixels,
            "max": processor.max_pixels,
            "mean": list(processor.settings.mean),
            "std": list(processor.settings.std),
            "rescale": processor.settings.rescale_factor,
        },
        "text": text_identity(processor),
        "generation": {"temperature": 0.0, "repetition_penalty": 1.0},
        "dtype": str(model.dtype).removeprefix("torch."),
        "batch_size": batch_size,
        "seed": seed,
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "model": folder_identity(source) if source else memory_identity(model),
        "quantization": quantization and digest(quantization),
        "kernels": kernels_of(model),
        "activations": activations_of(model),
        "head": head_of(model),
        "kv_cache": model.cache_type,
        **(extra or {}),
    }


def kernels_of(model: QwenVL) -> dict[str, int]:
    """How many layers each kind of kernel computes: they round in their own ways.

    Quantized layers, and layers in float and the output head if it is not torch that multiplies
    them.
    """
    found = Counter(layer.kernel for layer in quantized_layers(model).values())
    floats = (module for module in model.modules() if isinstance(module, FloatLinear))
    found.update(module.product.kernels.name for module in floats)
    if model.lm_head is None and isinstance(model.head_product, bf16_linear.Bf16Linear):
        found[model.head_product.kernels.name] += 1
    return dict(sorted(found.items()))


def activations_of(model: QwenVL) -> str | None:
    """``int8`` if inputs are rounded though the recipe did not say so; else None."""
    asked = any(layer.rounds_inputs for layer in quantized_layers(model).values())
    return "int8" if asked else None


def head_of(model: QwenVL) -> str | None:
    """The scheme of a quantized output head; else None."""
    return model.lm_head.scheme.label if isinstance(model.lm_head, QuantLinear) else None


def setup_differences(base: Mapping[str, Any], candidate: Mapping[str, Any]) -> list[str]:
    """Name the parts in which two runs differ, the model and its quantization left out."""

    def setup(values: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if key not in MODEL_KEYS}

    return differences(setup(base), setup(candidate))


def folder_identity(folder: Path) -> dict[str, Any]:
    """Hash a checkpoint folder: its config and every weight file that is read."""
    return {
        "config": _file_digest(folder / "config.json"),
        "files": {name: _file_digest(folder / name) for name in sorted(find_weights(folder).files)},
    }


def text_identity(processor: Processor) -> dict[str, Any]:
    """What decides how questions become tokens, and where an answer ends."""
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)  # only the fast ones have it
    rules = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    # State of the last call rather than rules: encoding leaves its own padding behind.
    rules = {key: value for key, value in rules.items() if key not in ("padding", "truncation")}
    return {
        "tokenizer": digest(rules),
        "chat_template": digest(tokenizer.chat_template),
        "stop_ids": sorted(processor.stop_ids),
    }


def memory_identity(model: QwenVL) -> dict[str, Any]:
    """Hash a model as it lies in memory: its config and every tensor's bytes."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().contiguous().to("cpu").view(-1)
        weights.update(flat.view(torch.uint8).numpy().tobytes())
    return {"config": digest(model.config.raw), "files": {"memory": weights.hexdigest()}}


def weight_bytes(model: QwenVL, source: Path | None) -> int:
    """Size of the weights: of the checkpoint's files that are read, or of the tensors in memory."""
    if source:
        return find_weights(source).bytes
    tensors = {t.data_ptr(): t for t in model.state_dict().values()}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def weight_count(model: QwenVL) -> int:
    """How many weights the model has, however they are stored; shared ones count once.

    Modules that say `in_features` and `out_features` count by these, because a quantized linear
    layer holds packed words.
    """
    total = 0
    seen: set[int] = set()
    for module in model.modules():
        if hasattr(module, "out_features") and not isinstance(module, nn.Linear):
            packed: Any = module
            bias = getattr(packed, "bias", None)
            total += packed.in_features * packed.out_features
            total += 0 if bias is None else bias.numel()
            continue
        for parameter in module.parameters(recurse=False):
            total += 0 if parameter.data_ptr() in seen else parameter.numel()
            seen.add(parameter.data_ptr())
    return total


def digest(value: object) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
