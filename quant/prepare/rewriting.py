"""Copy a float checkpoint from folder to folder, with some of its tensors changed.

One tensor is in memory at a time: changes are lazy tensors, which are computed when the shard that
holds them is written. Tensors keep the names of the source's files and its division into shards;
tokenizer, processor and template files are copied byte for byte.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ...common.atomic import write_json
from ...common.lazy_tensor import LazyTensor, TensorLike
from ...common.progress import Update
from ...model.checkpoint import CheckpointReader
from ...model.config import ModelConfig
from ...model.families import family_of
from ..checkpoint.safetensors_folder.shards import ShardWriter, copy_side_files
from ..checkpoint.safetensors_folder.writing import renamed

Change = Callable[[str, LazyTensor], Mapping[str, TensorLike]]
"""`change(name, tensor)` returns the tensors that take the place of one of the source, by canonical
name: the same one (`keep`), a changed one (`mapped`), one under another name, several, or none."""


def keep(name: str, tensor: LazyTensor) -> Mapping[str, TensorLike]:
    """The `Change` that changes nothing."""
    return {name: tensor}


def mapped(
    tensor: LazyTensor,
    function: Callable[[Tensor], Tensor],
    shape: tuple[int, ...] | None = None,
) -> LazyTensor:
    """Apply a function to a tensor when it is written; the result is rounded to its dtype.

    Args:
        tensor: of the source, any float dtype.
        function: of the tensor in its stored dtype, which must not be changed in place.
        shape: of the result; None: as before.
    """
    return replace(
        tensor,
        shape=tensor.shape if shape is None else shape,
        read=lambda: function(tensor.read()).to(tensor.dtype),
    )


def rewrite_checkpoint(
    reader: CheckpointReader,
    destination: Path,
    change: Change,
    *,
    config: Mapping[str, Any] | None = None,
    side_files: Mapping[str, Callable[[Path, Path], None]] | None = None,
    update: Update | None = None,
) -> None:
    """Write a changed copy of a float checkpoint.

    Args:
        reader: of the source; `open_source(folder, untied=True)` adds the head of a tied model.
        destination: existing empty folder.
        change: see `Change`.
        config: content of config.json; None: the source's file is copied.
        side_files: by name, functions `write(source, target)` of files that replace the copy of a
            side file, for a changed tokenizer.
        update: shows the number of written tensors.

    Raises:
        ValueError: the source is damaged, two tensors would have one name, or a tensor has another
            shape or dtype than it declared.
    """
    _write_tensors(reader, destination, change, update)
    source = reader.folder
    if config is None:
        shutil.copyfile(source / "config.json", destination / "config.json")
    else:
        write_json(destination / "config.json", config)
    copy_side_files(source, destination, family_of(ModelConfig.from_folder(source)).side_files)
    for name, write in (side_files or {}).items():
        (destination / name).unlink(missing_ok=True)
        write(source / name, destination / name)


def _write_tensors(
    reader: CheckpointReader, destination: Path, change: Change, update: Update | None
) -> None:
    writer = ShardWriter(destination)
    # By shard, since the writer holds one shard at a time.
    names = sorted(reader.names(), key=lambda name: (reader.file(name), name))
    for count, name in enumerate(names):
        source, file = reader.source_name(name), reader.file(name)
        for changed, tensor in change(name, reader.lazy(name)).items():
            shown = _watched(changed, tensor, update, count, len(names))
            writer.write(renamed(changed, name, source), shown, file)
    writer.close()


def _watched(
    name: str, tensor: TensorLike, update: Update | None, count: int, total: int
) -> TensorLike:
    """Report a lazy tensor when it is computed."""
    if update is None or not isinstance(tensor, LazyTensor):
        return tensor

    def read() -> Tensor:
        update(count, total, name)
        return tensor.read()

    return replace(tensor, read=read)
