"""Names of a model's tensors in GGUF, and the list of the tensors of a file.

The tables of names follow ggml's `gguf-py/gguf/tensor_mapping.py` and, for the vision tower,
llama.cpp's `tools/mtmd/clip-impl.h`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from ..source import ExportSource
from .tensors import Change, FileTensor, FloatType, float_tensor, layer_tensor, why_not_layers

_EXPERT = re.compile(r"\.experts\.\d+\.")
_NUMBERED = re.compile(r"(.*?)\.(\d+)\.(.+)")

Rewrite = Callable[[FileTensor], list[FileTensor]]
"""Replaces a tensor: by parts of it, or by itself in another order."""


@dataclass(frozen=True)
class Naming:
    """Names of the tensors of one file."""

    parts: Collection[str]
    """Parts of the family table (`Part`) that are in it."""
    prefixes: Collection[str]
    """First words of the names of its parameters."""
    modules: Mapping[str, str]
    """Outside of blocks: module to its name in the file."""
    blocks: Mapping[str, str]
    """Lists of blocks: path to its name in the file."""
    inside: Mapping[str, str]
    """Within a block: module to its name in the file."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Within a block: parameter to its whole name in the file, where that is not of a module."""
    unlisted: Collection[str] = ()
    """Parameters that the writer of the file adds itself."""

    def module(self, name: str) -> str:
        """Return the name of a module; of an expert's, that of the stacked tensor.

        Raises:
            ValueError: the file has no place for it.
        """
        name = _EXPERT.sub(".experts.", name)
        if name in self.modules:
            return self.modules[name]
        match = _NUMBERED.fullmatch(name)
        if match and match[1] in self.blocks and match[3] in self.inside:
            return f"{self.blocks[match[1]]}.{match[2]}.{self.inside[match[3]]}"
        raise ValueError(f"GGUF has no name for {name}")

    def parameter(self, name: str) -> str:
        """Return the name of a parameter.

        Raises:
            ValueError: the file has no place for it.
        """
        if (match := _NUMBERED.fullmatch(name)) and match[3] in self.parameters:
            return f"{self.blocks[match[1]]}.{match[2]}.{self.parameters[match[3]]}"
        owner, _, leaf = name.rpartition(".")
        return f"{self.module(owner)}.{leaf}"


def grouped_layers(source: ExportSource, naming: Naming) -> dict[str, list[str]]:
    """Return the linear layers of a file by the name of their tensor; experts share one."""
    groups: dict[str, list[str]] = {}
    for spec in source.layers.values():
        if spec.part in naming.parts:
            groups.setdefault(f"{naming.module(spec.name)}.weight", []).append(spec.name)
    return groups


def why_not_tensors(source: ExportSource, naming: Naming) -> str | None:
    """Return why no type carries some layer of a file; None if types carry all."""
    reasons = (why_not_layers(source, each) for each in grouped_layers(source, naming).values())
    return next(filter(None, reasons), None)


def list_tensors(
    source: ExportSource,
    naming: Naming,
    float_type: FloatType | None,
    rewrites: Mapping[str, Rewrite],
    changes: Mapping[str, Change] | None = None,
) -> list[FileTensor]:
    """List the tensors of a file: linear layers, then everything else in F32.

    Args:
        source: the checkpoint.
        naming: of the file.
        float_type: of linear layers that are not quantized; None: as stored.
        rewrites: by the name in the file, for tensors of blocks by its words after the number.
        changes: of float tensors other than linear layers, by the same names.

    Raises:
        ValueError: the file has no place for a parameter, or no type carries a layer.
    """
    groups = grouped_layers(source, naming)
    tensors = [layer_tensor(source, layers, name, float_type) for name, layers in groups.items()]
    weights = {_weight_name(source, layer) for layers in groups.values() for layer in layers}
    for stored in source.parameters:
        if stored.partition(".")[0] not in naming.prefixes:
            continue
        if stored not in weights and stored not in naming.unlisted:
            name = naming.parameter(stored)
            change = (changes or {}).get(_in_block(name))
            tensors.append(float_tensor(source, stored, name, change=change))
    unchanged: Rewrite = lambda tensor: [tensor]  # noqa: E731
    return [
        part for each in tensors for part in rewrites.get(_in_block(each.name), unchanged)(each)
    ]


def _weight_name(source: ExportSource, layer: str) -> str:
    """Return the parameter with the weight of a layer: that of all experts for an expert."""
    of_all = source.layers[layer].slice
    return f"{layer}.weight" if of_all is None else of_all.tensor


def _in_block(name: str) -> str:
    match = _NUMBERED.fullmatch(name)
    return match[3] if match else name
