"""Writing a checkpoint folder so that it appears whole or not at all.

Everything goes into a hidden folder beside the target, which takes the target's name by one rename
at the end. A failure, or a kill, leaves no half checkpoint under the real name.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ....common.lazy_tensor import TensorLike
from ....common.safetensors_writer import sync_folder, write_tensors
from ....model.weight_files import INDEX_FILE, SINGLE_FILE


class ShardSink(Protocol):
    """Where finished tensors go; the third seam of block-wise work."""

    def write(self, name: str, tensor: TensorLike, file: str) -> None:
        """Take one tensor for a shard; tensors of one shard come together."""
        ...


class FolderSink:
    """Writes shards into a folder; holds those tensors of one that need not be read later."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: str | None = None
        self._tensors: dict[str, TensorLike] = {}
        self._weight_map: dict[str, str] = {}
        self.total_bytes = 0
        """Tensor bytes taken so far."""

    def write(self, name: str, tensor: TensorLike, file: str) -> None:
        """See `ShardSink.write`.

        Raises:
            ValueError: the name was written before.
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
        """Write the last shard and, with more than the one plain file, the index."""
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
def whole_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into that becomes `out` if the `with` block succeeds.

    Raises:
        ValueError: `out` exists and `overwrite` is false, or it is a file.
    """
    if out.is_file():
        raise ValueError(f"output {out} is a file; give a folder that does not exist yet")
    if out.exists() and not overwrite:
        raise ValueError(f"output folder {out} exists; give another or ask to overwrite it")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        share(partial)
        yield partial
        sync_folder(partial)
        if out.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
            out.rename(old / out.name)
            partial.rename(out)
            shutil.rmtree(old)
        else:
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def copy_side_files(source: Path, target: Path, patterns: tuple[str, ...]) -> list[str]:
    """Copy tokenizer, processor and template files byte for byte; returns the names copied.

    Args:
        source: folder of the checkpoint.
        target: folder that exists.
        patterns: names relative to `source`; an asterisk stands for any part of one.
    """
    files = [path for pattern in patterns for path in sorted(source.glob(pattern))]
    found = [path.relative_to(source) for path in files if path.is_file()]
    for name in found:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    return [name.as_posix() for name in found]


def share(path: Path) -> None:
    """Give a file or folder that was made private the rights that the umask leaves new ones."""
    path.chmod((0o777 if path.is_dir() else 0o666) & ~_umask())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write JSON with a fixed layout; keys stay in the order given."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _umask() -> int:
    # The process's mask can only be read by setting it.
    mask = os.umask(0)
    os.umask(mask)
    return mask
