"""Ownership of output folders: resume equal work, refuse other work, lock folders in use.

A folder that a command works in holds `work.json` with the fingerprint of its options and inputs.
An equal fingerprint means resume; a different one is an error unless overwriting is requested.
Only files written by vlpress are removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .atomic import PART, atomic_folder, write_json
from .differences import differences, plain
from .distributed import Communicator, init_distributed
from .json_files import read_json
from .progress import Reporter, reporting

Compare = Callable[[Mapping[str, Any], Mapping[str, Any]], list[str]]

MARKER = "work.json"
TRASH = ".discarded"
REMEDY = "remove it or use --fresh"


def claim(
    out: Path,
    fingerprint: Mapping[str, Any],
    *,
    own: Collection[str],
    overwrite: bool = False,
    fresh: bool = False,
    compare: Compare = differences,
) -> bool:
    """Prepare `out` for the work that `fingerprint` describes; return True if work is resumed.

    Args:
        out: the folder; created if it does not exist.
        fingerprint: JSON values that determine the result: stored work is valid only if all of
            them are equal.
        own: names inside `out` that the work writes; removed when it restarts.
        overwrite: discard work with another fingerprint.
        fresh: discard work with any fingerprint.
        compare: lists the differences of two fingerprints that make the stored work invalid; the
            stored fingerprint is replaced if it differs in other parts.

    Raises:
        ValueError: `out` holds other work and neither flag is set, holds files that vlpress did
            not write, or is a file.
    """
    if claim_result(out, fingerprint, overwrite=overwrite, fresh=fresh, compare=compare):
        if not is_same(out, fingerprint):
            write_json(out / MARKER, {"fingerprint": plain(fingerprint)})
        return True
    out.mkdir(parents=True, exist_ok=True)
    discard(out, own)
    write_json(out / MARKER, {"fingerprint": plain(fingerprint)})
    return False


def refuse_foreign(out: Path, marker: str = MARKER) -> None:
    """Check that a path is absent, an empty folder, or a folder with `marker` in it.

    Raises:
        ValueError: it is a file, or a folder that this command did not write.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"output {out} is a file; give a folder")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    names = [
        name for name in names if name != marker + PART
    ]  # left by a kill during its first write
    if names and not (out / marker).is_file():
        raise ValueError(
            f"output folder {out} is not empty and was not written by this command "
            f"(it holds {names[0]}); give another folder"
        )


def is_same(folder: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Whether a finished result folder has this fingerprint."""
    stored = read_marker(folder)
    return stored is not None and not differences(stored, fingerprint)


def read_marker(out: Path) -> dict[str, Any] | None:
    """Return the fingerprint of the work in a folder; None if there is none.

    Raises:
        ValueError: the marker is damaged.
    """
    marker = out / MARKER
    return dict(read_json(marker, REMEDY)["fingerprint"]) if marker.is_file() else None


def claim_result(
    out: Path,
    fingerprint: Mapping[str, Any],
    *,
    overwrite: bool = False,
    fresh: bool = False,
    compare: Compare = differences,
) -> bool:
    """Check a folder that is itself the result; return True if it is finished and equal.

    Nothing is removed: `staged_result` replaces the folder once the new one is complete.

    Raises:
        ValueError: as `claim`.
    """
    refuse_foreign(out)
    if fresh or not (out / MARKER).is_file():
        return False
    changed = compare(read_json(out / MARKER, REMEDY).get("fingerprint", {}), fingerprint)
    if changed and not overwrite:
        shown = "; ".join(changed[:3]) + ("; ..." if len(changed) > 3 else "")
        raise ValueError(
            f"output folder {out} holds other work ({shown}); "
            "give another folder, or --overwrite to discard it"
        )
    return not changed


@contextmanager
def staged_result(out: Path, fingerprint: Mapping[str, Any]) -> Iterator[Path]:
    """Yield an empty folder for a result, which is renamed to `out` with its fingerprint.

    A kill at any point leaves the old folder, none, or the complete new one.
    """
    with atomic_folder(out, existing="replace", exclusive=True) as staged:
        yield staged
        write_json(staged / MARKER, {"fingerprint": plain(fingerprint)})


def discard(out: Path, own: Collection[str]) -> None:
    """Remove the named entries of `out` and its marker, and nothing else."""
    trash = out / TRASH
    for name in (TRASH, *own, MARKER):
        path = out / name
        if path.is_dir() and not path.is_symlink():
            # Renamed first: a kill must not leave part of a checkpoint under its real name.
            if path != trash:
                path = path.rename(trash)
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def sole_use(out: Path) -> Iterator[None]:
    """Lock an output folder against other commands for the duration of a `with` block.

    The lock is a hidden file next to the folder and is released when its process ends.

    Raises:
        ValueError: another command uses the folder, or its parent cannot be created.
    """
    out = out.resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileNotFoundError, FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"output folder {out} cannot be made ({error.strerror}: {error.filename}); "
            "give another folder"
        ) from None
    path = out.with_name(f".{out.name}.vlpress-lock")
    try:
        with FileLock(path, blocking=False):
            try:
                yield
            finally:
                # Safe while held: acquisition is non-blocking, so no process waits on this inode.
                path.unlink(missing_ok=True)
    except Timeout:
        raise ValueError(
            f"output folder {out} is in use by another vlpress; wait for it or give another folder"
        ) from None


@contextmanager
def shared_use(out: Path, *, progress: bool) -> Iterator[tuple[Communicator, Reporter]]:
    """Join the processes that torchrun started; rank 0 locks `out` and reports.

    Args:
        out: output folder.
        progress: as `reporting`.

    Raises:
        ValueError: as `sole_use`.
        ConnectionAbortedError: another process ended.
    """
    with init_distributed() as comm:
        lock = sole_use(out) if comm.rank == 0 else nullcontext()
        with lock, reporting(progress, rank=comm.rank) as reporter:
            yield comm, reporter
