"""From a name to a model: find the folder, build the modules, read the weights.

Modules can be built on the `meta` device, where they take no memory, and filled block by block:
peak memory then follows the largest block instead of the model.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from .checkpoint import CheckpointReader
from .config import ModelConfig
from .qwen_vl import QwenVL
from .weight_files import refuse_adapter

__all__ = [
    "CheckpointReader",
    "build_model",
    "check_tied_head",
    "choose_device",
    "choose_dtype",
    "load_block",
    "load_model",
    "release_block",
    "resolve_model",
]

BUILT_IN = "tiny"
HEAD = "lm_head.weight"
SHORT_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja")


def resolve_model(name: str | Path) -> Path:
    """Folder of a model.

    Args:
        name: `tiny` (the model inside the package), a local folder, or a hub id `owner/name`,
            which is fetched into the hub's cache.

    Raises:
        FileNotFoundError: There is no such folder and the name is no hub id.
        ValueError: The folder holds an adapter only, or the hub does not give the checkpoint.
    """
    if name == BUILT_IN:
        folder = Path(__file__).resolve().parent / BUILT_IN
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"the built-in model {BUILT_IN!r} is missing from this installation; "
                "install the package again or give a checkpoint folder"
            )
        return folder
    folder = Path(name)
    if folder.is_dir():
        refuse_adapter(folder)  # here, because most adapters come without a config.json
        return folder
    if folder.exists():
        raise ValueError(
            f"{name}: is a file; allowed: a checkpoint folder, a hub id owner/name, or {BUILT_IN}"
        )
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(name)):
        raise FileNotFoundError(
            f"{name}: no such folder; give a checkpoint folder, a hub id owner/name, or {BUILT_IN}"
        )
    folder = _fetch(str(name))
    refuse_adapter(folder)
    return folder


def _fetch(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=list(HUB_FILES)))
    except (OSError, ValueError) as error:  # the hub's errors derive from these two
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"{repo}: neither a local folder nor to be had from the hub ({reason}); "
            "check the name and the network, or give a local folder"
        ) from None


def choose_device(device: str | torch.device) -> torch.device:
    """Device for `auto` (CUDA if there is any), `cpu`, `cuda` or `cuda:n`.

    Raises:
        ValueError: The device is unknown or this machine lacks it.
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
    """Build the modules without reading weights.

    On `meta` they take no memory; elsewhere they get torch's default random values.

    Args:
        config: Sizes.
        device: Where the parameters are created.
        dtype: Of the parameters; None takes the config's, or float32.
    """
    dtype = dtype or config.dtype or torch.float32
    with torch.device(device):
        model = QwenVL(config)
    return model.to(dtype).eval()


def load_model(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
) -> QwenVL:
    """Load a model in eval mode; its parameters do not require gradients.

    Args:
        name_or_path: See `resolve_model`.
        device: See `choose_device`.
        dtype: Of the parameters; `auto` takes what the checkpoint says.

    Raises:
        FileNotFoundError: A file of the checkpoint is missing.
        ValueError: The checkpoint is quantized, or its names or shapes are not the config's.
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
    """Data type for `auto` (what the checkpoint says), `bf16`, `fp16`, `fp32` or a torch type.

    Raises:
        ValueError: The name is unknown.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return config.dtype or reader.dtype("model.embed_tokens.weight")
    if dtype not in SHORT_DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; allowed: auto, {', '.join(SHORT_DTYPES)}")
    return SHORT_DTYPES[dtype]


def check_tensors(reader: CheckpointReader, model: QwenVL) -> None:
    """Compare the names and shapes of a checkpoint with a model's, reading no tensor.

    Raises:
        ValueError: A tensor is missing, left over, or of another shape.
    """
    expected = dict(model.named_parameters())
    missing = [name for name in expected if name not in reader]
    if missing:
        raise ValueError(_listed(reader, missing, "missing"))
    # A tied head may be stored all the same; rotary frequencies are computed, not loaded.
    spare = {HEAD} if model.lm_head is None else set()
    left = [
        name
        for name in reader.names()
        if name not in expected and name not in spare and not name.endswith(".inv_freq")
    ]
    if left:
        raise ValueError(_listed(reader, left, "unknown to this model"))
    for name, parameter in expected.items():
        _check_shape(reader, name, reader.shape(name), tuple(parameter.shape))


def check_tied_head(reader: CheckpointReader, model: QwenVL) -> None:
    """Compare a tied head that is stored all the same with the embedding, which is used for it.

    Raises:
        ValueError: They differ, so the head is not tied.
    """
    if model.lm_head is not None or HEAD not in reader:
        return
    embedding, head = (
        reader.tensor(name).to(model.dtype) for name in ("model.embed_tokens.weight", HEAD)
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
    reader: CheckpointReader, name: str, found: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    if found != wanted:
        raise ValueError(
            f"{reader.folder}: {name} has shape {list(found)}, config.json asks for "
            f"{list(wanted)}; the weights and config.json must belong to the same model"
        )


def load_block(
    reader: CheckpointReader,
    model: QwenVL,
    prefix: str,
    *,
    device: str | torch.device | None = None,
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    """Read the weights of one module into a model, in place.

    Args:
        reader: The checkpoint.
        model: Its modules may be on `meta`.
        prefix: Module path, such as `model.layers.3`.
        device: Where the weights go; None: where the embedding lies, or the CPU while that is on
            `meta`.
        change: Called with the name of each tensor and what is stored; gives what is loaded.

    Raises:
        ValueError: A tensor is missing or has another shape.
    """
    if device is None:
        device = "cpu" if model.device.type == "meta" else model.device
    _fill(reader, model.get_submodule(prefix), prefix, torch.device(device), change)


def release_block(module: nn.Module) -> None:
    """Put a module back on `meta`, which frees the memory of its weights."""
    module.to("meta")


def _fill(
    reader: CheckpointReader,
    module: nn.Module,
    prefix: str,
    device: torch.device,
    change: Callable[[str, Tensor], Tensor] | None = None,
) -> None:
    for path, parameter in list(module.named_parameters()):
        name = f"{prefix}.{path}" if prefix else path
        value = reader.copy(name)
        if change is not None:
            value = change(name, value)
        _check_shape(reader, name, tuple(value.shape), tuple(parameter.shape))
        if not value.is_floating_point():
            raise ValueError(
                f"{reader.folder}: {name} is stored as {value.dtype}; a model that is not "
                "quantized has float weights only"
            )
        _assign(module, path, value.to(device=device, dtype=parameter.dtype))


def _assign(module: nn.Module, path: str, value: Tensor) -> None:
    owner, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
