"""Writing quantized checkpoints: the walk over a source that all formats share.

What is not quantized is copied with its name, type and bytes; a quantized layer's tensors come
where its weight was. Each of these is read back and compared before it is written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....common.atomic import write_json
from ....common.lazy_tensor import TensorLike
from ....model.checkpoint import CheckpointReader
from ....model.config import ModelConfig
from ....model.families import family_of
from ...methods.affine import QuantizedWeight
from .checkpoint import EMBEDDING, REPORT_FILE
from .folder import FolderSink, ShardSink, copy_side_files
from .format import Contents, Format


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint's tensors come from."""

    reader: CheckpointReader
    parts: tuple[str, ...]
    """Last names of the tensors that hold a quantized layer's weight in the source; the first that
    is there marks the place."""
    encoded: Callable[[str], Mapping[str, TensorLike]]
    """The tensors of a quantized layer by their last names, see `encode_layer`."""
    tensor: Callable[[str], TensorLike | None]
    """Any other tensor by name, biases of quantized layers too; None leaves it out."""


@dataclass
class Sizes:
    """Bytes written."""

    layers: dict[str, int] = field(default_factory=dict)
    """Each quantized layer with its bias."""
    packed: int = 0
    """All quantized layers without their biases."""
    total: int = 0


def write_checkpoint(
    origin: Origin,
    contents: Contents,
    format: Format,
    folder: Path,
    *,
    config: Mapping[str, Any],
    record: Mapping[str, Any] | None,
) -> None:
    """Write a checkpoint into an empty folder, see `checkpoint_folder`.

    Args:
        origin: the tensors.
        contents: which of them are quantized layers.
        format: one that has nothing against the contents.
        folder: existing, empty.
        config: what config.json says but for its `quantization_config`; a width that was changed
            is changed here too.
        record: goes into `vlpress.json`, with the sizes as written; None leaves it out.

    Raises:
        ValueError: a layer holds a number that the format cannot say, or the source is
            inconsistent.
    """
    sink = FolderSink(folder)
    sizes = _write_tensors(origin, contents, sink)
    sink.close()
    sizes.total = sink.total_bytes
    described = format.quantization_config(contents, _file_names(origin))
    write_json(folder / "config.json", {**config, "quantization_config": described})
    for name in format.config_files:
        write_json(folder / name, described)
    if record is not None:
        write_json(folder / REPORT_FILE, _with_sizes(record, sizes, contents))
    copy_side_files(origin.reader.folder, folder, family_of(contents.config).side_files)


def _write_tensors(origin: Origin, contents: Contents, sink: ShardSink) -> Sizes:
    reader, sizes = origin.reader, Sizes()
    for name in sorted(reader.names(), key=lambda name: (reader.file(name), name)):
        source, file = reader.source_name(name), reader.file(name)
        owner, _, leaf = name.rpartition(".")
        if owner in contents.schemes and leaf in origin.parts:
            if leaf != _place(origin, owner):
                continue
            tensors = origin.encoded(owner)
            for part, tensor in tensors.items():
                sink.write(source.removesuffix(leaf) + part, tensor, file)
            size = sum(tensor.nbytes for tensor in tensors.values())
            sizes.layers[owner] = sizes.layers.get(owner, 0) + size
            sizes.packed += size
            continue
        other = origin.tensor(name)
        if other is None:
            continue
        sink.write(source, other, file)
        if owner in contents.schemes:
            sizes.layers[owner] = sizes.layers.get(owner, 0) + other.nbytes
    return sizes


def _place(origin: Origin, layer: str) -> str:
    """The part of a layer in whose place its new tensors come."""
    return next(part for part in origin.parts if f"{layer}.{part}" in origin.reader)


def encode_layer(
    weight: QuantizedWeight, format: Format, dtype: torch.dtype, name: str
) -> dict[str, Tensor]:
    """A layer's tensors in a format, by their last names, and proof that they read back the same.

    Args:
        weight: unpacked.
        format: one that can hold it.
        dtype: what the model computes in, see `computing_dtype`.
        name: of the layer.

    Raises:
        ValueError: the layer holds a number that the format cannot say.
    """
    try:
        tensors = format.encode(weight, dtype)
    except ValueError as error:
        raise ValueError(f"format {format.name}: {name}: {error}") from None
    if not format.decode(tensors, weight.scheme, name).equals(weight):
        raise RuntimeError(f"{name}: packed and unpacked weights differ; nothing was written")
    return tensors


def computing_dtype(config: ModelConfig, reader: CheckpointReader) -> torch.dtype:
    """What engines will compute a checkpoint in."""
    return config.dtype or reader.dtype(EMBEDDING)


def _file_names(origin: Origin) -> Callable[[str], str]:
    def file_name(layer: str) -> str:
        return origin.reader.source_name(f"{layer}.weight").removesuffix(".weight")

    return file_name


def _with_sizes(record: Mapping[str, Any], sizes: Sizes, contents: Contents) -> dict[str, Any]:
    """The record with the bytes of this format.

    Raises:
        ValueError: it is about other layers.
    """
    layers = record.get("layers", [])
    if odd := {layer["name"] for layer in layers} ^ set(sizes.layers):
        raise ValueError(f"{REPORT_FILE} and the layers disagree about {min(odd)}; remove the file")
    weights = sum(spec.weights for spec in contents.quantized.values())
    written = {
        "candidate_bytes": sizes.total,
        "bits_per_weight": 8 * sizes.packed / weights,
    }
    return {
        **record,
        "size": {**record.get("size", {}), **written},
        "layers": [{**layer, "bytes": sizes.layers[layer["name"]]} for layer in layers],
    }
