"""Load models by name, float or quantized.

The kind of a checkpoint is read from its `config.json`; loading needs no calibration data.
"""

from pathlib import Path
from typing import Literal

import torch

from ...model.built_in import find_built_in
from ...model.cache import check_cache_type
from ...model.config import ModelConfig
from ...model.kv_quant.types import CacheChoice
from ...model.loading import (
    build_model,
    choose_device,
    choose_dtype,
    load_block,
    load_model,
    resolve_model,
)
from ...model.qwen_vl import QwenVL
from ...model.token_reduction.table import RECIPE, parse_choice
from ..runtime.kernel_selection import (
    accelerate_head_,
    accelerate_layers_,
    accelerate_linear_attention_,
    prepare_,
    round_head_,
    round_inputs_,
)
from ..targets import put_loaded
from .adapter import put_adapter
from .outliers import outlier_folder
from .safetensors_folder.reading import QuantizedCheckpoint

Activations = Literal["recipe", "int8"]
Head = Literal["recipe", "w8a16", "w4a16"]
HEAD_BITS = {"w8a16": 8, "w4a16": 4}
"""Bits of a head that is quantized at load time, by `Head`."""


def resolve_folder(name: str | Path) -> Path:
    """Find the folder of a model, see `resolve_model`; one with outliers is derived on demand."""
    built_in = find_built_in(name)
    if built_in and built_in.outliers_of:
        return outlier_folder(resolve_model(built_in.outliers_of))
    return resolve_model(name)


def is_quantized(path: str | Path) -> bool:
    """Whether the config of a checkpoint folder contains a quantization.

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
    kv_cache: CacheChoice = "recipe",
    reduce: str = RECIPE,
    adapter: bool = True,
) -> QwenVL:
    """Load a float or quantized model by name or folder, with the fastest kernels.

    Args:
        name: see `resolve_folder`.
        device: auto, cpu, cuda, cuda:n.
        dtype: auto, bf16, fp16, fp32.
        activations: `int8` quantizes the inputs of weight-only layers too, see `round_inputs_`.
        head: `w8a16` or `w4a16` quantizes the output head, see `round_head_`.
        kv_cache: type of the KV cache, see `KVCache`; `recipe` takes fp8 if the checkpoint asks
            for it, else the model's dtype.
        reduce: rule that drops visual tokens, see `parse_rule`; `none` keeps all, `recipe` follows
            the checkpoint's record.
        adapter: add the low-rank adapter of a quantized model, if it has one.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the checkpoint is damaged or of an unknown kind, or int8 activations are
            requested for a float one, the head is quantized already, or the cache type does not
            suit the model.
    """
    folder = resolve_folder(name)
    if kv_cache != "recipe":
        check_cache_type(ModelConfig.from_folder(folder).text, kv_cache)
    if is_quantized(folder):
        model = load_quantized(folder, device=device, dtype=dtype, adapter=adapter)
    else:
        model = load_model(folder, device=device, dtype=dtype)
    accelerate_head_(model)
    accelerate_layers_(model, model.device)
    accelerate_linear_attention_(model)
    if activations == "int8":
        round_inputs_(model)
    if head != "recipe":
        round_head_(model, HEAD_BITS[head])
    if kv_cache != "recipe":
        model.cache_type = kv_cache
    if reduce != RECIPE:
        model.reduction = parse_choice(reduce)
    return model


def load_quantized(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    adapter: bool = True,
    kernels: bool = True,
) -> QwenVL:
    """Load a quantized checkpoint; its layers stay quantized, see `kernel_selection.py`.

    Its KV cache is fp8 if it has a `kv_cache_scheme`, and it drops visual tokens if its record has
    a rule for that.

    Args:
        path: checkpoint folder or hub id.
        device: auto, cpu, cuda, cuda:n.
        dtype: of float tensors and activations; `auto` takes the checkpoint's.
        adapter: add the low-rank adapter beside the weights, if there is one.
        kernels: prepare the layers for the fastest kernels; False leaves them as they are stored.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it is not quantized, of an unknown format, or damaged.
    """
    checkpoint = QuantizedCheckpoint(resolve_model(path))
    reader, chosen = checkpoint.reader, choose_device(device)
    model = build_model(checkpoint.config, dtype=choose_dtype(dtype, checkpoint.config, reader))
    checkpoint.check()
    for name in checkpoint.layers:
        bias = checkpoint.bias(name)
        if bias is not None:
            # A copy: the tensor is a view of the memory-mapped file.
            bias = bias.to(chosen, model.dtype, copy=True)
        weight = checkpoint.weight(name, chosen)
        put_loaded(model, name, weight, bias, torch.empty(0, dtype=model.dtype, device=chosen))
    load_block(reader, model, "", device=chosen)
    if adapter and checkpoint.adapter is not None:
        put_adapter(model, checkpoint.adapter)
    model.cache_scales = checkpoint.kv_scales()
    if checkpoint.quantizes_cache:
        model.cache_type = "fp8"
    model.reduction = checkpoint.reduction
    if kernels:
        prepare_(model)
    return model.eval()
