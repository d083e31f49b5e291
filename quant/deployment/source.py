"""The checkpoint of an export: float or quantized, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from torch import Tensor

from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ...model.families import EMBEDDING, Family, LinearSpec, family_of
from ...model.loading import build_model, check_tensors, check_tied_head, parameter_shapes
from ..checkpoint.loading import is_quantized
from ..checkpoint.safetensors_folder.reading import QuantizedCheckpoint
from ..compressed_weight import CompressedWeight
from ..recipe.scheme import Scheme


class ExportSource:
    """A checkpoint folder, float or quantized in any format that is read; names are canonical.

    Args:
        folder: folder with config.json and the weights.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it is an adapter, or of a format or model that is not known.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.quantized = QuantizedCheckpoint(folder) if is_quantized(folder) else None
        if self.quantized is None:
            self.config, self.reader = ModelConfig.from_folder(folder), CheckpointReader(folder)
        else:
            self.config, self.reader = self.quantized.config, self.quantized.reader

    @property
    def family(self) -> Family:
        """Table of the model's family."""
        return family_of(self.config)

    @property
    def schemes(self) -> Mapping[str, Scheme]:
        """Schemes of the quantized layers; empty for a float checkpoint."""
        return {} if self.quantized is None else self.quantized.schemes

    @cached_property
    def layers(self) -> dict[str, LinearSpec]:
        """All linear layers and the token embedding, in the order of computation."""
        return {spec.name: spec for spec in self.family.targets(self.config)}

    @cached_property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters of the model, whether a checkpoint stores them or not."""
        return tuple(parameter_shapes(self.config))

    def check(self) -> None:
        """Compare the names of the stored tensors with those of the model.

        Raises:
            ValueError: a tensor is missing or unknown.
        """
        if self.quantized is None:
            model = build_model(self.config)
            check_tensors(self.reader, model)
            check_tied_head(self.reader, model)
        else:
            self.quantized.check()

    def weight(self, name: str) -> CompressedWeight | Tensor:
        """Read the weight of a linear layer or of the token embedding.

        Args:
            name: canonical name without `.weight`. A tied head has the weight of the embedding.

        Returns:
            The compressed weight of a quantized layer, else the stored float tensor [out, in].

        Raises:
            ValueError: a tensor is missing or damaged.
        """
        if self.quantized is not None and name in self.quantized.schemes:
            return self.quantized.weight(name)
        stored = self.tensor(self.float_name(name))
        of_all = self.layers[name].slice
        return stored if of_all is None or f"{name}.weight" in self.reader else of_all.view(stored)

    def float_name(self, name: str) -> str:
        """Return the name of the tensor with the float weight of a layer.

        It is the tensor of all experts for an expert, unless the checkpoint has tensors of single
        experts.
        """
        layer = self.layers[name]
        if layer.part == "head" and self.config.text.tie_word_embeddings:
            return f"{EMBEDDING}.weight"
        if layer.slice is not None and f"{name}.weight" not in self.reader:
            return layer.slice.tensor
        return f"{name}.weight"

    def tensor(self, name: str) -> Tensor:
        """Read a float tensor as stored: a bias, a norm, an embedding.

        Raises:
            ValueError: it is missing or damaged.
        """
        return self.reader.tensor(name)
