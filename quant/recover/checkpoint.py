"""Write a recovered checkpoint: a quantized one with some layers and float tensors replaced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ...common.lazy_tensor import TensorLike
from ...model.loading import HEAD, stored_dtype
from ..checkpoint.encoding import encode_layer
from ..checkpoint.formats.format import Origin, float_tensor
from ..checkpoint.model_card import base_of_card, write_model_card
from ..checkpoint.safetensors_folder.reading import QuantizedCheckpoint
from ..compressed_weight import CompressedWeight
from ..methods.low_rank import LowRank


@dataclass(frozen=True)
class Replacing:
    """What replaces parts of a checkpoint."""

    weights: Mapping[str, CompressedWeight]
    """Layers, by name."""
    floats: Mapping[str, Tensor]
    """Float tensors, by canonical name."""
    adapters: Mapping[str, LowRank]
    """Low-rank parts, by layer."""


def write_recovered(
    checkpoint: Path, target: Path, replacing: Replacing, record: Mapping[str, Any]
) -> None:
    """Write a checkpoint in the format it has, into an existing empty folder.

    Args:
        checkpoint: folder of the quantized checkpoint; not changed.
        target: of the new one.
        replacing: what differs; everything else is copied.
        record: content of the new `vlpress.json`.

    Raises:
        ValueError: the format cannot hold a value.
    """
    source = QuantizedCheckpoint(checkpoint)
    source.check()
    contents = source.contents()
    weights, floats = replacing.weights, replacing.floats
    adapter: dict[str, TensorLike] = {} if source.adapter is None else dict(source.adapter.tensors)
    for name, part in replacing.adapters.items():
        adapter |= {f"{name}.{end}.weight": matrix for end, matrix in part.tensors().items()}
    dtype = stored_dtype(contents.config, source.reader)

    def encode(name: str) -> Mapping[str, Tensor]:
        weight = weights[name] if name in weights else source.weight(name)
        return encode_layer(weight, source.format, dtype, name)

    def other(name: str) -> TensorLike | None:
        is_copy = name == HEAD and contents.config.text.tie_word_embeddings
        if is_copy or source.is_spurious(name):
            return None
        if name in floats:
            return float_tensor(floats[name].float().cpu(), source.reader.dtype(name))
        return source.reader.lazy(name)

    source.format.write(
        Origin(source.reader, source.format.parts, encode, other, adapter=adapter),
        contents,
        target,
        config=contents.config.raw,
        record=record,
    )
    write_model_card(target, base_of_card(checkpoint))
