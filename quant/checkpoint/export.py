"""From one checkpoint format to another: the same integers, scales and zero points elsewhere."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...common.lazy_tensor import LazyTensor
from .formats import choose_format
from .formats.checkpoint import QuantizedCheckpoint
from .formats.folder import checkpoint_folder
from .formats.writer import Origin, computing_dtype, encode_layer, write_checkpoint
from .loading import resolve_folder


def export(
    checkpoint: str | Path, out: str | Path, format: str, *, overwrite: bool = False
) -> None:
    """Write a quantized checkpoint in another format; nothing is rounded again.

    Tensors that are not quantized, biases and side files are copied byte for byte. A bias of zeros
    where the model has none, and a copy of a tied head, are left out.

    Args:
        checkpoint: folder or hub id, of any format and writer that can be read.
        out: folder to make.
        format: as for `save_quantized`.
        overwrite: replace an existing folder.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the checkpoint is not quantized or damaged, the format cannot say what it
            holds, or `out` exists.
    """
    folder = resolve_folder(checkpoint)
    with checkpoint_folder(Path(out), folder, overwrite=overwrite) as target:
        export_into(target, folder, format)


def export_into(target: Path, checkpoint: Path, format: str) -> None:
    """Write a quantized checkpoint in another format into an existing empty folder.

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

    dtype = computing_dtype(contents.config, source.reader)

    def encoded(name: str) -> Mapping[str, Tensor]:
        return encode_layer(source.weight(name), chosen, dtype, name)

    def tensor(name: str) -> LazyTensor | None:
        is_copy = name == "lm_head.weight" and contents.config.text.tie_word_embeddings
        return None if is_copy or source.is_spurious(name) else source.reader.lazy(name)

    write_checkpoint(
        Origin(source.reader, source.format.parts, encoded, tensor),
        contents,
        chosen,
        target,
        config=contents.config.raw,
        record=source.record,
    )
