"""Writing quantized checkpoints of any format that is stored in such a folder.

Unquantized tensors are copied with their names, dtypes and bytes. The tensors of a quantized layer
take the position of its weight; they are decoded and compared before they are written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....common.atomic import write_json
from ....model.carried import CarriedTensors
from ....model.families import family_of
from ..adapter import bytes_by_layer, write_adapter
from ..formats.contents import Contents
from ..formats.format import Origin
from .shards import REPORT_FILE, ShardWriter, copy_side_files

if TYPE_CHECKING:
    from .folder_format import FolderFormat


@dataclass
class Written:
    """Bytes of the written tensors, those of an adapter included."""

    layers: dict[str, int] = field(default_factory=dict)
    """Bytes of each quantized layer with its bias and adapter."""
    packed: int = 0
    """Bytes of all quantized layers with their adapters, without their biases."""
    total: int = 0


def write_checkpoint(
    origin: Origin,
    contents: Contents,
    format: FolderFormat,
    folder: Path,
    *,
    config: Mapping[str, Any],
    record: Mapping[str, Any] | None,
) -> None:
    """Write a checkpoint into an empty folder, see `checkpoint_folder`.

    Args:
        origin: source of the tensors.
        contents: the quantized layers.
        format: one whose `why_not` is None for the contents.
        folder: existing, empty.
        config: content of config.json without `quantization_config`, with padded widths.
        record: written to `vlpress.json` together with the sizes; None writes no such file.

    Raises:
        ValueError: the format cannot represent a number of a layer, or the source is inconsistent.
    """
    carried = CarriedTensors.of(contents.config, origin.reader)
    contents = replace(contents, carried=carried.layers)
    writer = ShardWriter(folder)
    sizes = _write_tensors(origin, contents, writer)
    writer.close()
    sizes.total = writer.total_bytes
    write_adapter(origin.adapter, folder)
    for name, size in bytes_by_layer(origin.adapter).items():
        sizes.layers[name] += size
        sizes.packed += size
        sizes.total += size
    described = format.quantization_config(contents, _file_names(origin, contents))
    write_json(folder / "config.json", {**config, "quantization_config": described})
    for name in format.config_files:
        write_json(folder / name, described)
    if record is not None:
        write_json(folder / REPORT_FILE, _with_sizes(record, sizes, contents))
    copy_side_files(origin.reader.folder, folder, family_of(contents.config).side_files)


def _write_tensors(origin: Origin, contents: Contents, writer: ShardWriter) -> Written:
    reader, sizes = origin.reader, Written()
    # By shard, since the writer holds one shard at a time.
    for name in sorted(reader.names(), key=lambda name: (reader.file(name), name)):
        source, file = reader.source_name(name), reader.file(name)
        owner, _, leaf = name.rpartition(".")
        for added, tensor in origin.added.get(name, {}).items():
            writer.write(renamed(added, name, source), tensor, file)
        layers = {}  # quantized layers whose tensors take the position of this one
        if name in contents.slices:
            layers = {s.name: renamed(s.name, name, source) for s in contents.slices[name]}
        elif owner in contents.schemes and leaf in origin.parts:
            if leaf != _first_part(origin, owner):
                continue
            layers = {owner: source.removesuffix(f".{leaf}")}
        for layer, file_name in layers.items():
            tensors = origin.encoded(layer)
            for part, tensor in tensors.items():
                writer.write(f"{file_name}.{part}", tensor, file)
            size = sum(tensor.nbytes for tensor in tensors.values())
            sizes.layers[layer] = sizes.layers.get(layer, 0) + size
            sizes.packed += size
        if layers:
            continue
        other = origin.tensor(name)
        if other is None:
            continue
        writer.write(source, other, file)
        if owner in contents.schemes:
            sizes.layers[owner] = sizes.layers.get(owner, 0) + other.nbytes
    return sizes


def _first_part(origin: Origin, layer: str) -> str:
    """Return the part of a layer in the source whose position its new tensors take."""
    return next(part for part in origin.parts if f"{layer}.{part}" in origin.reader)


def _file_names(origin: Origin, contents: Contents) -> Callable[[str], str]:
    targets = family_of(contents.config).targets(contents.config)
    slices = {spec.name: spec.slice for spec in targets}

    def file_name(layer: str) -> str:
        weight = slices.get(layer)
        if weight is None or weight.tensor not in origin.reader:
            return origin.reader.source_name(f"{layer}.weight").removesuffix(".weight")
        return renamed(layer, weight.tensor, origin.reader.source_name(weight.tensor))

    return file_name


def renamed(name: str, canonical: str, source: str) -> str:
    """Convert a canonical name to the naming of a file, by the two names of another tensor.

    >>> renamed("model.layers.0.x.3.y", "model.layers.0.x.z", "model.language_model.layers.0.x.z")
    'model.language_model.layers.0.x.3.y'
    """
    pairs = zip(reversed(canonical), reversed(source), strict=False)
    same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    prefix = source[: len(source) - same]
    return prefix + name.removeprefix(canonical[: len(canonical) - same])


def _with_sizes(record: Mapping[str, Any], sizes: Written, contents: Contents) -> dict[str, Any]:
    """Return the record with the sizes in this format.

    Raises:
        ValueError: its layers are not the quantized ones.
    """
    layers = record.get("layers", [])
    if difference := {layer["name"] for layer in layers} ^ set(sizes.layers):
        raise ValueError(
            f"{REPORT_FILE} and the quantized layers disagree about {min(difference)}; "
            "remove the file"
        )
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
