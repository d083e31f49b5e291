"""Opening models by name, quantized ones included.

The kind of a checkpoint is read from its `config.json`; nothing of calibration is needed to load
one.
"""

from pathlib import Path
from typing import Literal

import torch

from ...model.cache import CacheType
from ...model.config import ModelConfig
from ...model.loading import (
    build_model,
    choose_device,
    choose_dtype,
    load_block,
    load_model,
    resolve_model,
)
from ...model.qwen_vl import QwenVL
from ..runtime.kernel_selection import (
    prepare_,
    round_head_,
    round_inputs_,
    speed_head_,
    speed_layers_,
)
from ..runtime.linear import QuantLinear
from ..targets import put_module
from .formats.checkpoint import QuantizedCheckpoint
from .outliers import OUTLIERS, outlier_folder

Activations = Literal["recipe", "int8"]
Head = Literal["recipe", "w8a16", "w4a16"]
HEAD_BITS = {"w8a16": 8, "w4a16": 4}


def resolve_folder(name: str | Path) -> Path:
    """Folder of a model: as `resolve_model`, and ``tiny-outliers`` is derived on demand."""
    return outlier_folder(resolve_model("tiny")) if name == OUTLIERS else resolve_model(name)


def is_quantized(path: str | Path) -> bool:
    """Whether a checkpoint folder says that it is quantized.

    Raises:
        FileNotFoundError: there is no config.json.
    """
    return ModelConfig.from_folder(path).raw.get("quantization_config") is not None


def open_model(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    activations: Activations = "recipe",
    head: Head = "recipe",
    kv_cache: CacheType = "model",
) -> QwenVL:
    """Load a model by name or folder, whether it is quantized or not.

    Args:
        name: as `resolve_folder` takes it.
        device: auto, cpu, cuda, cuda:n.
        dtype: auto, bf16, fp16, fp32.
        activations: ``int8`` rounds the inputs of weight-only layers too, see `round_inputs_`.
        head: ``w8a16`` or ``w4a16`` rounds the output head, see `round_head_`.
        kv_cache: ``int8`` rounds keys and values, see `KVCache`.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the checkpoint is damaged or of an unknown kind, or int8 activations are asked
            of one that is not quantized, or the head is quantized already.
    """
    folder = resolve_folder(name)
    load = load_quantized if is_quantized(folder) else load_model
    model = load(folder, device=device, dtype=dtype)
    speed_head_(model)
    speed_layers_(model, model.device)
    if activations == "int8":
        round_inputs_(model)
    if head != "recipe":
        round_head_(model, HEAD_BITS[head])
    model.cache_type = kv_cache
    return model


def load_quantized(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> QwenVL:
    """Load a quantized checkpoint; its layers stay quantized, see `runtime.py` for their kernels.

    Args:
        path: checkpoint folder or hub id.
        device: auto, cpu, cuda, cuda:n.
        dtype: of everything that is not quantized, and of the activations; ``auto`` takes what
            the checkpoint says.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it is not quantized, of an unknown format, or damaged.
    """
    checkpoint = QuantizedCheckpoint(resolve_model(path))
    reader, chosen = checkpoint.reader, choose_device(device)
    model = build_model(checkpoint.config, dtype=choose_dtype(dtype, checkpoint.config, reader))
    checkpoint.check()
    for name in checkpoint.schemes:
        bias = checkpoint.bias(name)
        if bias is not None:
            # A copy: what was read is a view of the file.
            bias = bias.to(chosen, model.dtype, copy=True)
        put_module(model, name, QuantLinear(checkpoint.weight(name, chosen), bias))
    load_block(reader, model, "", device=chosen)
    prepare_(model)
    return model.eval()
