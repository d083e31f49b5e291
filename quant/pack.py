"""The verbs `pack` and `unpack` of the Python API."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..common.options import verb
from ..common.ordered_map import default_threads
from ..common.output_dir import refuse_foreign, sole_use
from ..common.progress import Reporter, reporting
from ..model.packed.folder import (
    Progress,
    describe_folder,
    list_files,
    pack_folder,
    read_manifest,
    unpack_folder,
)
from ..model.packed.reading import tensor_sizes
from ..model.stored_files import MANIFEST, is_packed, is_packed_folder, packed_path, unpacked_name
from ..model.weight_files import find_weights
from .checkpoint.loading import resolve_folder
from .checkpoint.safetensors_folder.shards import checkpoint_folder
from .config import PackOptions, UnpackOptions

MIB = 2**20


@verb(PackOptions)
def pack(options: PackOptions) -> dict[str, Any]:
    """Pack a checkpoint without loss: its tensors are entropy-coded, other files are copied.

    The packed folder is read by every verb like the original, and `unpack` restores all its files
    byte for byte. Hidden files are left out.

    Returns:
        Sizes of all files before and after, and of the tensors by dtype.

    Raises:
        FileNotFoundError: no such checkpoint, or an incomplete one.
        ValueError: it is packed already or damaged, or `out` holds something else or is in use.
    """
    out = Path(options.out)
    with sole_use(out), reporting(options.progress) as reporter:
        source = resolve_folder(str(options.model))
        if is_packed_folder(source):
            raise ValueError(f"{source}: is packed already; vlpress unpack restores it")
        find_weights(source)
        refuse_foreign(out, MANIFEST)
        if is_packed_folder(out) and read_manifest(out) == describe_folder(source):
            reporter.note(f"{out} is finished already")
        else:
            _refuse_other(out, options)
            total = sum((source / name).stat().st_size for name in list_files(source))
            with (
                checkpoint_folder(out, source, overwrite=True, exclusive=True) as staged,
                _progress(reporter, "packing", total) as progress,
            ):
                pack_folder(source, staged, threads=_threads(options), progress=progress)
    return describe_packed(out)


@verb(UnpackOptions)
def unpack(options: UnpackOptions) -> dict[str, Any]:
    """Restore the files of a packed checkpoint, byte for byte.

    Returns:
        `checkpoint`, the folder; `files` and `bytes`, their number and size; `unknown`, names of
        files of the packed folder that were not part of the original, which are left out.

    Raises:
        FileNotFoundError: no such folder, it is not packed, or a file of it is missing.
        ValueError: a file is damaged, or `out` holds something else or is in use.
    """
    out = Path(options.out)
    with sole_use(out), reporting(options.progress) as reporter:
        source = Path(options.checkpoint)
        files = read_manifest(source)
        unknown = sorted({*map(unpacked_name, list_files(source))} - {*files, MANIFEST})
        if unknown:
            reporter.warn(f"{source}: {unknown[0]} is not in {MANIFEST}; it is left out")
        if out.is_dir() and describe_folder(out) == files:
            reporter.note(f"{out} is finished already")
        else:
            _refuse_foreign_files(out, files)
            _refuse_other(out, options)
            total = sum(entry.size for entry in files.values())
            with (
                checkpoint_folder(out, source, overwrite=True, exclusive=True) as staged,
                _progress(reporter, "unpacking", total) as progress,
            ):
                unpack_folder(source, staged, threads=_threads(options), progress=progress)
    return {
        "checkpoint": str(out),
        "files": len(files),
        "bytes": sum(entry.size for entry in files.values()),
        "unknown": unknown,
    }


def describe_packed(folder: Path) -> dict[str, Any]:
    """Describe the sizes of a packed folder, see `pack`."""
    files, dtypes = read_manifest(folder), dict[str, dict[str, Any]]()
    for name in files:
        if is_packed(folder / name):
            for info, coded in tensor_sizes(packed_path(folder / name)):
                row = dtypes.setdefault(
                    info.dtype,
                    {"dtype": info.dtype, "tensors": 0, "bytes": 0, "packed_bytes": 0},
                )
                row["tensors"] += 1
                row["bytes"] += info.end - info.begin
                row["packed_bytes"] += coded
    return {
        "checkpoint": str(folder),
        "files": len(files),
        "bytes": sum(entry.size for entry in files.values()),
        "packed_bytes": sum((folder / name).stat().st_size for name in list_files(folder)),
        "tensors": sorted(dtypes.values(), key=lambda row: -row["bytes"]),
    }


def _threads(options: PackOptions | UnpackOptions) -> int:
    return options.threads or default_threads()


def _refuse_other(out: Path, options: PackOptions | UnpackOptions) -> None:
    """Refuse a folder with another result unless it may be replaced."""
    if out.is_dir() and any(out.iterdir()) and not (options.overwrite or options.fresh):
        raise ValueError(
            f"output folder {out} holds another checkpoint; give another folder, or --overwrite "
            "to discard it"
        )


def _refuse_foreign_files(out: Path, files: Collection[str]) -> None:
    """Refuse a folder with files that the unpacked checkpoint has not."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"output {out} is a file; give a folder")
    foreign = [name for name in list_files(out) if name not in files] if out.is_dir() else []
    if foreign:
        raise ValueError(
            f"output folder {out} holds {foreign[0]}, which is no file of this checkpoint; give "
            "another folder"
        )


@contextmanager
def _progress(reporter: Reporter, title: str, total: int) -> Iterator[Progress]:
    """Show the processed MiB of the files, and the name of the current one."""
    done, current = 0, ""
    with reporter.stage(title) as update:

        def on_file(name: str) -> None:
            nonlocal current
            current = name

        def on_bytes(count: int) -> None:
            nonlocal done
            done += count
            update(done // MIB, -(-total // MIB), current)

        yield Progress(on_file, on_bytes)
