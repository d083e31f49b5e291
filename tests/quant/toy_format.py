"""A checkpoint format defined from outside: the tensors of a layer as they are, for two kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from toy_weight import SignScheme

from vlpress.model.families import LinearSpec
from vlpress.quant.checkpoint.formats.contents import Contents
from vlpress.quant.checkpoint.safetensors_folder.folder_format import FolderFormat
from vlpress.quant.compressed_weight import CompressedWeight
from vlpress.quant.recipe.scheme import QuantScheme, Scheme


@dataclass(frozen=True)
class PlainSettings:
    schemes: Mapping[str, Scheme]

    def scheme(self, names: Sequence[str]) -> Scheme:
        return self.schemes[names[0]]


@dataclass(frozen=True)
class Plain(FolderFormat):
    name: str = "plain"
    quant_method: str = "plain"
    kinds: tuple[str, ...] = (QuantScheme.kind, SignScheme.kind)
    parts: tuple[str, ...] = ("integers", "signs", "scales", "zero_points")
    marker: str = "scales"
    order_part: str | None = None
    config_files: tuple[str, ...] = ()

    def why_not(self, contents: Contents) -> str | None:
        return None

    def encode(self, weight: CompressedWeight, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: tensor.contiguous() for name, tensor in weight.tensors().items()}

    def decode(self, tensors: Mapping[str, Tensor], scheme: Scheme, name: str) -> CompressedWeight:
        return scheme.weight({part: tensor.clone() for part, tensor in tensors.items()})

    def stored_bytes(self, spec: LinearSpec, scheme: Scheme, dtype: torch.dtype) -> int:
        per_group = 4 if scheme.kind == SignScheme.kind else 5
        return spec.weights + per_group * spec.out_features * scheme.groups(spec.in_features)

    def bias_dtype(self, stored: torch.dtype) -> torch.dtype:
        return stored

    def settings(self, config: Mapping[str, Any]) -> PlainSettings:
        kinds: dict[str, type[Scheme]] = {"integer": QuantScheme, "sign": SignScheme}
        layers = {name: dict(values) for name, values in config["layers"].items()}
        return PlainSettings({n: kinds[v.pop("kind")](**v) for n, v in layers.items()})

    def quantization_config(
        self, contents: Contents, file_name: Callable[[str], str]
    ) -> dict[str, Any]:
        layers = {n: {"kind": s.kind, **s.to_dict()} for n, s in contents.schemes.items()}
        return {"quant_method": "plain", "layers": layers}
