"""Checkpoint folders: shards with their index, and side files."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ....common.atomic import atomic_folder, write_json
from ....common.lazy_tensor import TensorLike
from ....common.safetensors_writer import write_tensors
from ....model.weight_files import INDEX_FILE, SINGLE_FILE

REPORT_FILE = "vlpress.json"
"""Record of the run that wrote the checkpoint."""


class ShardWriter:
    """Writes tensors into the shards of a folder, one shard at a time.

    Lazy tensors of the current shard are read when it is written; others are held until then.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: str | None = None
        self._tensors: dict[str, TensorLike] = {}
        self._weight_map: dict[str, str] = {}
        self.total_bytes = 0
        """Bytes of all tensors so far."""

    def write(self, name: str, tensor: TensorLike, file: str) -> None:
        """Add a tensor to a shard.

        Args:
            name: in the checkpoint.
            tensor: in memory, or lazy.
            file: name of the shard; all tensors of one shard are added in succession.

        Raises:
            ValueError: the name was added before.
        """
        if name in self._weight_map:
            raise ValueError(f"tensor {name} would be written twice; the source is inconsistent")
        if file != self._file:
            self._flush()
            self._file = file
        self._tensors[name] = tensor
        self._weight_map[name] = file
        self.total_bytes += tensor.nbytes

    def close(self) -> None:
        """Write the last shard, and the index unless `model.safetensors` holds everything."""
        self._flush()
        if set(self._weight_map.values()) != {SINGLE_FILE}:
            index = {
                "metadata": {"total_size": self.total_bytes},
                "weight_map": dict(sorted(self._weight_map.items())),
            }
            write_json(self._folder / INDEX_FILE, index)

    def _flush(self) -> None:
        if self._file is not None:
            write_tensors(self._tensors, self._folder / self._file)
            self._tensors = {}


@contextmanager
def checkpoint_folder(
    out: Path, source: Path, *, overwrite: bool = False, exclusive: bool = False
) -> Iterator[Path]:
    """Yield an empty folder, which becomes `out` if the `with` block succeeds.

    Args:
        out: checkpoint folder to create.
        source: folder of the checkpoint it is made from.
        overwrite: replace an existing folder.
        exclusive: the caller holds a lock on `out`, see `atomic_folder`.

    Raises:
        ValueError: `out` is a file, exists and `overwrite` is false, or is or contains the source.
    """
    if out.resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"output {out} is or holds the source, which is never written to")
    existing: Literal["replace", "refuse"] = "replace" if overwrite else "refuse"
    with atomic_folder(out, existing=existing, exclusive=exclusive) as folder:
        yield folder


def copy_side_files(source: Path, target: Path, patterns: tuple[str, ...]) -> list[str]:
    """Copy tokenizer, processor and template files byte for byte.

    Args:
        source: folder of the checkpoint.
        target: existing folder.
        patterns: globs relative to `source`.

    Returns:
        The names of the copied files, relative to `source`.
    """
    files = [path for pattern in patterns for path in sorted(source.glob(pattern))]
    names = [path.relative_to(source) for path in files if path.is_file()]
    for name in names:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return [name.as_posix() for name in names]
