"""Model loading: build the modules, read the weights.

Modules can be built on the `meta` device, where they take no memory, and loaded block by block:
peak memory is then that of the largest block instead of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from .checkpoint import CheckpointReader
from .config import ModelConfig
from .expert_linear import expert_layers
from .families import EMBEDDING, family_of
from .qwen_vl import QwenVL
from .resolve import resolve_model

__all__ = [
    "CheckpointReader",
    "build_model",
    "check_tied_head",
    "choose_device",
    "choose_dtype",
    "load_block",
    "load_model",
    "parameter_shapes",
    "release_block",
    "resolve_model",
    "stored_dtype",
]

HEAD = "lm_head.weight"
SHORT_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device for `auto` (CUDA if available), `cpu`, `cuda` or `cuda:n`.

    Raises:
        ValueError: the device is unknown, or this machine does not have it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(
            f"device {device!r} is unknown; allowed: auto, cpu, cuda, cuda:n"
        ) from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device {str(device)!r}: this machine has {torch.cuda.device_count()} CUDA devices; "
            "use auto or cpu"
        )
    return chosen


def build_model(
    config: ModelConfig,
    *,
    device: str | torch.device = "meta",
    dtype: torch.dtype | None = None,
) -> QwenVL:
    """Build the modules in eval mode without reading weights.

    On `meta` they take no memory; on other devices they get torch's default random values.

    Args:
        config: the model's sizes.
        device: device of the parameters.
        dtype: dtype of the parameters; None: the config's, or float32.
    """
    dtype = dtype or config.dtype or torch.float32
    with torch.device(device):
        model = QwenVL(config)
    return model.to(dtype).eval()


@lru_cache(maxsize=32)
def parameter_shapes(config: ModelConfig) -> Mapping[str, tuple[int, ...]]:
    """Return the shapes of all parameters by name, whether a checkpoint stores them or not."""
    parameters = build_model(config).named_parameters()
    return MappingProxyType({name: tuple(each.shape) for name, each in parameters})


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> QwenVL:
    """Load a model in eval mode; its parameters do not require gradients.

    Args:
        name_or_path: see `resolve_model`.
        device: see `choose_device`.
        dtype: see `choose_dtype`.

    Raises:
        FileNotFoundError: a file of the checkpoint is missing.
        ValueError: the checkpoint is quantized or damaged, or its names or shapes are not the
            config's.
    """
    folder = resolve_model(name_or_path)
    config = ModelConfig.from_folder(folder)
    if (quantized := config.raw.get("quantization_config")) is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else None
        raise ValueError(
            f"{folder}: is quantized ({method or 'unknown method'}); "
            "load it with load_quantized or give the original checkpoint"
        )
    reader = CheckpointReader(folder)
    model = build_model(config, dtype=choose_dtype(dtype, config, reader))
    check_tensors(reader, model)
    _fill(reader, model, "", choose_device(device))
    check_tied_head(reader, model)
    return model


def choose_dtype(
    dtype: str | torch.dtype, config: ModelConfig, reader: CheckpointReader
) -> torch.dtype:
    """Return the dtype for `auto` (the checkpoint's), `bf16`, `fp16`, `fp32` or a torch dtype.

    Raises:
        ValueError: the name is unknown.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return stored_dtype(config, reader)
    if dtype not in SHORT_DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; allowed: auto, {', '.join(SHORT_DTYPES)}")
    return SHORT_DTYPES[dtype]


def stored_dtype(config: ModelConfig, reader: CheckpointReader) -> torch.dtype:
    """Return the dtype in which a checkpoint is meant to run: the config's, or its tensors'."""
    embedding = f"{EMBEDDING}.weight"  # not stored if it is quantized
    return config.dtype or reader.dtype(embedding if embedding in reader else "model.norm.weight")


def check_tensors(reader: CheckpointReader, model: QwenVL) -> None:
    """Compare the names and shapes of a checkpoint with a model's, without reading tensors.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape.
    """
    expected = stored_shapes(reader, model)
    missing = [name for name in expected if name not in reader]
    if missing:
        raise ValueError(_listed(reader, missing, "missing"))
    # Some checkpoints store a tied head as well. Rotary frequencies are computed, not loaded.
    ignored = {HEAD} if model.lm_head is None else set()
    carried = tuple(family_of(model.config).carried_parts(model.config))
    unknown = [
        name
        for name in reader.names()
        if name not in expected
        and name not in ignored
        and not name.endswith(".inv_freq")
        and not name.startswith(carried)
    ]
    if unknown:
        raise ValueError(_listed(reader, unknown, "unknown to this model"))
    for name, shape in expected.items():
        _check_shape(reader, name, reader.shape(name), shape)
    _check_orientation(reader, model, expected)


def stored_shapes(reader: CheckpointReader, model: QwenVL) -> dict[str, tuple[int, ...]]:
    """Return the shapes that the tensors of a checkpoint must have, by name.

    These are the parameters. Where the checkpoint has weights of single experts instead of a tensor
    of all experts, they are the weights of all layers that share the tensor.
    """
    experts, shapes = expert_layers(model, ""), dict[str, tuple[int, ...]]()
    for name, parameter in model.named_parameters():
        layers = experts.get(name, {})
        if name not in reader and any(f"{layer}.weight" in reader for layer in layers):
            shapes |= {f"{path}.weight": tuple(of.weight.shape) for path, of in layers.items()}
        else:
            shapes[name] = tuple(parameter.shape)
    return shapes


def _check_orientation(
    reader: CheckpointReader, model: QwenVL, expected: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse square tensors of all experts from transformers 5.

    When it reads published ones, it transposes a tensor only if the shape is not the expected one,
    so a square tensor that it has saved may have either orientation.
    """
    sizes = model.config.text.experts
    if sizes is None or not sizes.orientation_unsure:
        return
    for name in expert_layers(model, ""):
        shape = expected.get(name, ())
        if len(shape) == 3 and shape[1] == shape[2]:
            raise ValueError(
                f"{reader.folder}: {name} is {list(shape)}, saved by transformers 5, which may "
                "have left it in either orientation; allowed: the original files, or weights of "
                "single experts"
            )


def check_tied_head(reader: CheckpointReader, model: QwenVL) -> None:
    """Compare a tied head, if it is stored, with the embedding that is used in its place.

    Raises:
        ValueError: they differ, so the head is not tied.
    """
    if model.lm_head is not None or HEAD not in reader:
        return
    embedding, head = (
        reader.tensor(name).to(model.dtype) for name in (f"{EMBEDDING}.weight", HEAD)
    )
    if head.shape != embedding.shape or not torch.equal(head, embedding):
        raise ValueError(
            f"{reader.folder}: config.json says tie_word_embeddings, but lm_head.weight differs "
            "from the embedding; set it to false (in text_config too, if there is one)"
        )


def _listed(reader: CheckpointReader, names: list[str], problem: str) -> str:
    more = f" and {len(names) - 1} more tensors are" if len(names) > 1 else " is"
    return (
        f"{reader.folder}: {names[0]}{more} {problem}; the weights and config.json must belong "
        "to the same model"
    )


def _check_shape(
    reader: CheckpointReader, name: str, shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    if shape != expected:
        if len(shape) == 3 and (shape[0], shape[2], shape[1]) == expected:
            raise ValueError(
                f"{reader.folder}: {name} is {list(shape)}, and {list(expected)} by config.json: "
                "experts are stored as [experts, out_features, in_features] if "
                "transformers_version is 5.2 or later, as [experts, in_features, out_features] if "
                "it is earlier or missing; set it to that of the library that saved the weights"
            )
        raise ValueError(
            f"{reader.folder}: {name} has shape {list(shape)}, config.json requires "
            f"{list(expected)}; the weights and config.json must belong to the same model"
        )


def load_block(
    reader: CheckpointReader,
    model: QwenVL,
    prefix: str,
    *,
    device: str | torch.device | None = None,
    transform: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Load the weights of one module, in place.

    Args:
        reader: the checkpoint.
        model: modules may be on `meta`.
        prefix: module path, such as `model.layers.3`.
        device: device of the weights; None: the embedding's, or the CPU if that is on `meta`.
        transform: called with the name of each stored tensor and the tensor; returns the tensor to
            load.

    Raises:
        ValueError: a tensor is missing, is not floating point, or has another shape.
    """
    if device is None:
        device = "cpu" if model.device.type == "meta" else model.device
    _fill(reader, model.get_submodule(prefix), prefix, torch.device(device), transform)


def release_block(module: nn.Module) -> None:
    """Move a module back to `meta`, which frees the memory of its weights."""
    module.to("meta")


def _fill(
    reader: CheckpointReader,
    module: nn.Module,
    prefix: str,
    device: torch.device,
    transform: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    experts = expert_layers(module, prefix)
    for path, parameter in list(module.named_parameters()):
        name = f"{prefix}.{path}" if prefix else path
        layers = {} if name in reader else experts.get(name, {})
        if layers := {p: of for p, of in layers.items() if f"{p}.weight" in reader}:
            value = torch.empty(parameter.shape, dtype=parameter.dtype)
            for layer, of_layer in layers.items():
                weight = of_layer.slice.view(value)
                weight.copy_(_read(reader, f"{layer}.weight", tuple(weight.shape), transform))
        else:
            value = _read(reader, name, tuple(parameter.shape), transform)
        _assign(module, path, value.to(device=device, dtype=parameter.dtype))


def _read(
    reader: CheckpointReader,
    name: str,
    shape: tuple[int, ...],
    transform: Callable[[str, Tensor], Tensor] | None,
) -> Tensor:
    """Read a float tensor and check its shape after the transform."""
    value = reader.copy(name)
    if transform is not None:
        value = transform(name, value)
    _check_shape(reader, name, tuple(value.shape), shape)
    if not value.is_floating_point():
        raise ValueError(
            f"{reader.folder}: {name} is stored as {value.dtype}; a model that is not quantized "
            "has float weights only"
        )
    return value


def _assign(module: nn.Module, path: str, value: Tensor) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
