"""The adapter of a checkpoint: a folder of the library peft beside the weights.

`adapter/adapter_config.json` and `adapter/adapter_model.safetensors` hold the low-rank parts of all
layers that have one. Engines that load LoRA adapters read the folder as it is; `from_pretrained` of
transformers loads the checkpoint without it. Modules are named as in transformers, and
`target_modules` lists full names, so that exactly these layers match. `lora_alpha` equals the rank:
the product is added as it is. The base model is the checkpoint beside it, wherever that is, so no
name of it is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...common.atomic import write_json
from ...common.lazy_tensor import LazyTensor, TensorLike
from ...common.safetensors_writer import write_tensors
from ...model.checkpoint import canonical_name, lazy_tensors, module_name
from ...model.config import read_checkpoint_json
from ...model.families import LinearSpec
from ...model.qwen_vl import QwenVL
from ...model.weight_files import ADAPTER_CONFIG, ADAPTER_FILES
from ..methods.low_rank import NAMES, LowRank
from ..recipe.adapter import adapter_entry
from ..runtime.adapter import LowRankAdapter
from ..runtime.compressed_linear import CompressedLayer
from ..targets import compressed_linears

FOLDER = "adapter"
WEIGHTS = ADAPTER_FILES[0]
PREFIX = "base_model.model."
PARTS = tuple(f".{name}.weight" for name in NAMES)
"""Ends of the names of A and B."""
FLOATS = (torch.bfloat16, torch.float16, torch.float32)
# What changes the product or the modules in ways that are not computed here.
UNSUPPORTED = (
    "use_dora",
    "use_rslora",
    "fan_in_fan_out",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "target_parameters",
    "trainable_token_indices",
)
REMEDY = "convert it to a plain LoRA adapter, or run the checkpoint without it (--no-adapter)"


def adapter_tensors(layers: Mapping[str, CompressedLayer]) -> dict[str, torch.Tensor]:
    """Collect the matrices of layers with an adapter.

    Args:
        layers: by canonical name.

    Returns:
        `X.lora_A.weight` and `X.lora_B.weight` for every layer X with an adapter.
    """
    tensors = dict[str, torch.Tensor]()
    for name, layer in layers.items():
        adapter = getattr(layer, "adapter", None)
        if isinstance(adapter, LowRankAdapter):
            parts = adapter.low_rank().tensors().values()
            tensors |= {f"{name}{end}": part for end, part in zip(PARTS, parts, strict=True)}
    return tensors


def owner_of(name: str) -> str | None:
    """Return the layer that a tensor of `adapter_tensors` belongs to; None for other tensors."""
    return next((name.removesuffix(end) for end in PARTS if name.endswith(end)), None)


def bytes_by_layer(tensors: Mapping[str, TensorLike]) -> dict[str, int]:
    """Add up the bytes of tensors by their layers, see `adapter_tensors`."""
    sizes: dict[str, int] = {}
    for name, tensor in tensors.items():
        owner = owner_of(name) or name
        sizes[owner] = sizes.get(owner, 0) + tensor.nbytes
    return sizes


def write_adapter(tensors: Mapping[str, TensorLike], checkpoint: Path) -> None:
    """Write the adapter of a checkpoint; without tensors nothing is written.

    Args:
        tensors: see `adapter_tensors`; all of one rank.
        checkpoint: existing folder.

    Raises:
        ValueError: the ranks differ.
    """
    if not tensors:
        return
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith(PARTS[0])}
    if len(ranks) != 1:
        raise ValueError(
            f"adapters of ranks {', '.join(map(str, sorted(ranks)))}; allowed: one rank for all "
            "layers, because engines have no other"
        )
    folder = checkpoint / FOLDER
    folder.mkdir(exist_ok=True)
    named = {PREFIX + module_name(name): tensor for name, tensor in tensors.items()}
    write_tensors(named, folder / WEIGHTS)
    layers = [module_name(name) for name in bytes_by_layer(tensors)]
    write_json(folder / ADAPTER_CONFIG, _config(ranks.pop(), layers))


def _config(rank: int, modules: list[str]) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(modules),
    }


class StoredAdapter:
    """An adapter in its folder; a tensor is read on access. Names are canonical.

    Args:
        folder: with `adapter_config.json` and the weights.
        specs: the model's linear layers by name.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it is no plain LoRA adapter of linear layers of the model.
    """

    def __init__(self, folder: Path, specs: Mapping[str, LinearSpec]) -> None:
        self.folder, self._specs = folder, specs
        self.rank = _read_rank(folder / ADAPTER_CONFIG)
        self.tensors: dict[str, LazyTensor] = {
            canonical_name(name.removeprefix(PREFIX)): tensor
            for name, tensor in lazy_tensors(folder / WEIGHTS).items()
        }
        self._check(specs)

    @cached_property
    def bytes(self) -> dict[str, int]:
        """Bytes of both matrices by layer."""
        return bytes_by_layer(self.tensors)

    def entry(self, recorded: Mapping[str, Any]) -> dict[str, Any]:
        """Describe it, see `adapter_entry`; `recorded` is the entry of the record, or empty."""
        weights = sum(self._specs[name].weights for name in self.bytes)
        return adapter_entry(self.rank, self.bytes, weights, recorded.get("kinds", ()))

    def part(self, layer: str, device: torch.device | None = None) -> LowRank:
        """Read the matrices of a layer, as copies."""
        parts = (self.tensors[f"{layer}{end}"].read() for end in PARTS)
        return LowRank(*(part.to(device or part.device, copy=True) for part in parts))

    def _check(self, specs: Mapping[str, LinearSpec]) -> None:
        path = self.folder / WEIGHTS
        if not self.tensors:
            raise ValueError(f"{path}: holds no tensors; fetch the checkpoint again")
        for name in self.tensors:
            if owner_of(name) not in specs:
                raise ValueError(
                    f"{path}: {name} belongs to no linear layer of this model; allowed: the "
                    "adapter of this checkpoint"
                )
        for owner in self.bytes:
            spec = specs[owner]
            sizes = ((self.rank, spec.in_features), (spec.out_features, self.rank))
            for end, shape in zip(PARTS, sizes, strict=True):
                tensor = self.tensors.get(f"{owner}{end}")
                if tensor is None or tuple(tensor.shape) != shape or tensor.dtype not in FLOATS:
                    actual = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
                    raise ValueError(
                        f"{path}: {owner}{end} is {actual}; expected floats of {list(shape)}: r is "
                        f"{self.rank}, and the model's layer is {spec.out_features} x "
                        f"{spec.in_features}"
                    )


def has_adapter(checkpoint: Path) -> bool:
    """Whether a checkpoint folder has an adapter beside the weights."""
    return (checkpoint / FOLDER).is_dir()


def find_adapter(checkpoint: Path, specs: Mapping[str, LinearSpec]) -> StoredAdapter | None:
    """Open the adapter of a checkpoint; None if it has none.

    Raises:
        FileNotFoundError: a file of the adapter is missing.
        ValueError: see `StoredAdapter`.
    """
    return StoredAdapter(checkpoint / FOLDER, specs) if has_adapter(checkpoint) else None


def put_adapter(model: QwenVL, stored: StoredAdapter, prefix: str = "") -> None:
    """Put an adapter on the quantized layers of a model, each on the device of its layer.

    Args:
        model: with the quantized layers of the checkpoint.
        stored: its adapter.
        prefix: module path; only layers that it is or holds are changed. Empty: all.

    Raises:
        ValueError: the adapter is for a layer that is not quantized.
    """
    layers = compressed_linears(model.get_submodule(prefix))
    for name in stored.bytes:
        if prefix and name != prefix and not name.startswith(prefix + "."):
            continue
        layer = layers.get(name.removeprefix(prefix).removeprefix("."))
        if layer is None:
            raise ValueError(
                f"{stored.folder}: {name} is not quantized; allowed: adapters of quantized layers; "
                "merge the others into their weights"
            )
        device = next(layer.buffers()).device
        layer.adapter = LowRankAdapter(stored.part(name, device))


def _read_rank(path: Path) -> int:
    """Read the rank of a plain LoRA adapter from its configuration."""
    config = read_checkpoint_json(path)
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if config.get("peft_type") != "LORA" or not isinstance(rank, int) or rank < 1:
        raise ValueError(
            f"{path}: peft_type is {config.get('peft_type')!r} with r {rank!r}; allowed: LORA with "
            f"a rank; {REMEDY}"
        )
    if alpha != rank:
        raise ValueError(
            f"{path}: lora_alpha is {alpha!r} with r {rank}; allowed: equal numbers; multiply "
            "lora_B by lora_alpha / r and set lora_alpha to r"
        )
    for key in UNSUPPORTED:
        if config.get(key):
            raise ValueError(f"{path}: {key} is set; {REMEDY}")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias is {config['bias']!r}; allowed: 'none'; {REMEDY}")
    return rank
