"""Tensors of a checkpoint that its model does not compute with, and that saving copies.

Qwen3.5 has a module for multi-token prediction (`mtp.*`), and the towers of LLaVA have layers after
the one whose output the decoder reads. Loading ignores its tensors; plans count
them, and quantized checkpoints name its linear layers in their exclusion lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .checkpoint import CheckpointReader
from .config import ModelConfig
from .families import family_of


@dataclass(frozen=True)
class CarriedTensors:
    """Those that one checkpoint holds."""

    bytes: Mapping[str, int] = field(default_factory=dict)
    """By name of the tensor."""
    layers: tuple[str, ...] = ()
    """Module paths of the linear layers: those of the family's table, then other matrices."""

    @classmethod
    def of(cls, config: ModelConfig, reader: CheckpointReader) -> CarriedTensors:
        """List them for a checkpoint, of which no tensor is read.

        Args:
            config: of the model.
            reader: of the checkpoint, float or quantized.
        """
        family = family_of(config)
        starts = tuple(family.carried_parts(config))
        stored = [name for name in reader.names() if name.startswith(starts)]
        owners = {name.rpartition(".")[0] for name in stored}
        specs = family.carried_linears(config)
        specs += [spec for spec, _ in family.carried_kept(config)]
        layers = [
            spec.name
            for spec in specs
            if spec.name in owners or (spec.slice is not None and spec.slice.tensor in stored)
        ]
        layers += [
            name.removesuffix(".weight")
            for name in stored
            if name.endswith(".weight") and len(reader.shape(name)) == 2
        ]
        sizes = {name: reader.nbytes(name) for name in stored}
        return cls(sizes, tuple(dict.fromkeys(layers)))
