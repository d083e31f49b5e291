"""Convert a quantized checkpoint to another format, with the same integers and scales."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...common.lazy_tensor import LazyTensor
from ...model.loading import stored_dtype
from ..recipe.adapter import check_separable, without_adapter
from .encoding import encode_layer
from .formats.format import Origin
from .formats.table import choose_format
from .loading import resolve_folder
from .model_card import base_of_card, write_model_card
from .safetensors_folder.reading import QuantizedCheckpoint
from .safetensors_folder.shards import checkpoint_folder


def export(
    checkpoint: str | Path, out: str | Path, format: str, *, overwrite: bool = False
) -> None:
    """Write a quantized checkpoint in another format, atomically; no value is rounded again.

    Float tensors, biases and side files are copied byte for byte. A zero bias of a layer without
    bias, and a copy of a tied head, are omitted.

    Args:
        checkpoint: folder or hub id, in any format that can be read, by any writer.
        out: output folder.
        format: see `save_quantized`.
        overwrite: replace an existing folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the checkpoint is not quantized or damaged, the format cannot hold it, or `out`
            exists.
    """
    folder = resolve_folder(checkpoint)
    with checkpoint_folder(Path(out), folder, overwrite=overwrite) as target:
        export_into(target, folder, format)


def export_into(target: Path, checkpoint: Path, format: str, *, adapter: bool = True) -> None:
    """Write a quantized checkpoint in another format into an existing empty folder.

    Args:
        target: the folder.
        checkpoint: see `export`.
        format: see `save_quantized`.
        adapter: write its low-rank adapter too, if it has one.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: see `export`.
    """
    source = QuantizedCheckpoint(checkpoint)
    source.check()
    contents = source.contents()
    try:
        chosen = choose_format(contents, format)
    except ValueError as error:
        raise ValueError(f"{source.folder} cannot be exported: {error}") from None

    kept = source.adapter.tensors if adapter and source.adapter is not None else {}
    record = source.record
    if record is not None and not kept:
        check_separable(record, source.folder)
        record = without_adapter(record)
    dtype = stored_dtype(contents.config, source.reader)

    def encode(name: str) -> Mapping[str, Tensor]:
        return encode_layer(source.weight(name), chosen, dtype, name)

    def other(name: str) -> LazyTensor | None:
        is_copy = name == "lm_head.weight" and contents.config.text.tie_word_embeddings
        return None if is_copy or source.is_spurious(name) else source.reader.lazy(name)

    chosen.write(
        Origin(source.reader, source.format.parts, encode, other, adapter=kept),
        contents,
        target,
        config=contents.config.raw,
        record=record,
    )
    write_model_card(target, base_of_card(checkpoint))
