"""Opening models by name, quantized ones included.

The kind of a checkpoint is read from its `config.json`; nothing of calibration is needed to load
one.
"""

from pathlib import Path

import torch

from ..model.checkpoint import CheckpointReader
from ..model.config import ModelConfig
from ..model.families import family_of
from ..model.loading import (
    build_model,
    check_tied_head,
    choose_device,
    choose_dtype,
    load_block,
    load_model,
    resolve_model,
)
from ..model.qwen_vl import QwenVL
from .formats import gptq
from .linear import QuantLinear
from .outliers import OUTLIERS, outlier_folder
from .targets import put_module


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
) -> QwenVL:
    """Load a model by name or folder, whether it is quantized or not.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the checkpoint is damaged or of an unknown kind.
    """
    folder = resolve_folder(name)
    load = load_quantized if is_quantized(folder) else load_model
    return load(folder, device=device, dtype=dtype)


def load_quantized(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> QwenVL:
    """Load a quantized checkpoint; its layers stay quantized.

    Args:
        path: checkpoint folder or hub id.
        device: auto, cpu, cuda, cuda:n.
        dtype: of everything that is not quantized, and of the activations; ``auto`` takes what
            the checkpoint says.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it is not quantized, of an unknown format, or damaged.
    """
    folder = resolve_model(path)
    config = ModelConfig.from_folder(folder)
    raw = config.raw.get("quantization_config")
    if not isinstance(raw, dict):
        raise ValueError(f"{folder}: is not quantized; load it with load_model")
    if raw.get("quant_method") != "gptq":
        raise ValueError(f"{folder}: quant_method is {raw.get('quant_method')!r}; allowed is gptq")
    try:
        settings = gptq.Settings.from_config(raw)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    reader = CheckpointReader(folder)
    chosen = choose_device(device)
    model = build_model(config, dtype=choose_dtype(dtype, config, reader))
    _check_names(reader, model)
    _put_layers(reader, model, settings, chosen)
    load_block(reader, model, "", device=chosen)
    check_tied_head(reader, model)
    return model.eval()


def _put_layers(
    reader: CheckpointReader, model: QwenVL, settings: gptq.Settings, device: torch.device
) -> None:
    specs = {spec.name: spec for spec in family_of(model.config).linears(model.config)}
    for name, weight in gptq.read_layers(reader, settings, device):
        spec = specs[name]
        found = (weight.out_features, weight.in_features)
        if found != (spec.out_features, spec.in_features):
            raise ValueError(
                f"{reader.folder}: {name} is {list(found)}, config.json asks for "
                f"{[spec.out_features, spec.in_features]}; they belong to different models"
            )
        bias = None
        if spec.bias:
            # A copy: what was read is a view of the file.
            bias = reader.tensor(f"{name}.bias").to(device, model.dtype, copy=True)
        put_module(model, name, QuantLinear(weight, bias))


def _check_names(reader: CheckpointReader, model: QwenVL) -> None:
    """Every tensor of the file has a place, and every place a tensor."""
    layers = set(gptq.layer_names(reader.names()))
    biases = {s.name for s in family_of(model.config).linears(model.config) if s.bias}
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.rpartition(".")[0] not in layers or name.endswith(".bias")
    }
    for layer in layers:
        expected |= {f"{layer}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx")}
    optional = {f"{layer}.g_idx" for layer in layers} | {"lm_head.weight"}
    # AutoGPTQ writes a bias of zeros where the model has none.
    spurious = {f"{layer}.bias" for layer in layers - biases}
    known = {name for name, _ in model.named_parameters()}
    for layer in sorted(layers):
        if f"{layer}.weight" not in known:
            raise ValueError(
                f"{reader.folder}: {layer} is quantized, but config.json has no such layer; "
                "they belong to different models"
            )
    missing = sorted(expected - optional - set(reader.names()))
    left = sorted(set(reader.names()) - expected - optional - spurious)
    left = [name for name in left if not name.endswith(".inv_freq")]
    if missing or left:
        what = f"{missing[0]} is missing" if missing else f"{left[0]} is unknown to this model"
        raise ValueError(f"{reader.folder}: {what}; the checkpoint is incomplete or of another one")
    for name in sorted(spurious & set(reader.names())):
        if bool(reader.tensor(name).any()):
            raise ValueError(
                f"{reader.folder}: {name} is not zero, but this model has no bias there"
            )
