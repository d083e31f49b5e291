"""Whose output folder is this? Resume what is ours and the same, refuse everything else.

A folder that a command works in holds ``work.json`` with the fingerprint of the question it
answers: same fingerprint = go on where it stopped, another one = refuse unless told to overwrite.
Only what vlpress wrote is ever removed.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .atomic import PART, atomic_folder, write_json
from .differences import differences, plain
from .json_files import read_json

MARKER = "work.json"
TRASH = ".discarded"
REMEDY = "remove it or use --fresh"


def claim(
    out: Path,
    fingerprint: Mapping[str, Any],
    *,
    ours: Collection[str],
    overwrite: bool = False,
    fresh: bool = False,
) -> bool:
    """Take ``out`` for the work that ``fingerprint`` describes; return True when it is resumed.

    Args:
        out: the folder; created when missing.
        fingerprint: JSON values that decide the result: a change makes stored work useless.
        ours: names inside ``out`` that the work writes; these are removed to start afresh.
        overwrite: discard work with another fingerprint.
        fresh: discard work with any fingerprint.

    Raises:
        ValueError: ``out`` holds other work and neither flag is given, holds files that vlpress
            did not write, or is a file.
    """
    if claim_result(out, fingerprint, overwrite=overwrite, fresh=fresh):
        return True
    out.mkdir(parents=True, exist_ok=True)
    discard(out, ours)
    write_json(out / MARKER, {"fingerprint": plain(fingerprint)})
    return False


def refuse_foreign(out: Path, marker: str = MARKER) -> None:
    """Refuse a path that holds anything but a folder with our marker in it.

    Raises:
        ValueError: it is a file, or a folder that this command did not write.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"output {out} is a file; give a folder")
    names = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    names = [name for name in names if name != marker + PART]  # a kill while it was first written
    if names and not (out / marker).is_file():
        raise ValueError(
            f"output folder {out} is not empty and was not written by this command "
            f"(it holds {names[0]}); give another folder"
        )


def is_same(folder: Path, fingerprint: Mapping[str, Any]) -> bool:
    """Whether a finished result folder answers the question of this fingerprint."""
    marker = folder / MARKER
    return marker.is_file() and not differences(
        read_json(marker, REMEDY)["fingerprint"], fingerprint
    )


def claim_result(
    out: Path, fingerprint: Mapping[str, Any], *, overwrite: bool = False, fresh: bool = False
) -> bool:
    """Look at a folder that is itself the result; return True when it is there and the same.

    Nothing is removed: `place` replaces the folder once the new one is whole.

    Raises:
        ValueError: as `claim`.
    """
    refuse_foreign(out)
    if fresh or not (out / MARKER).is_file():
        return False
    changed = differences(read_json(out / MARKER, REMEDY).get("fingerprint", {}), fingerprint)
    if changed and not overwrite:
        shown = "; ".join(changed[:3]) + ("; ..." if len(changed) > 3 else "")
        raise ValueError(
            f"output folder {out} holds other work ({shown}); "
            "give another folder, or --overwrite to discard it"
        )
    return not changed


@contextmanager
def place(out: Path, fingerprint: Mapping[str, Any]) -> Iterator[Path]:
    """Yield an empty folder to write a result to, which then becomes ``out`` with its fingerprint.

    A kill at any moment leaves ``out`` as it was, absent, or whole and new.
    """
    with atomic_folder(out, existing="replace", exclusive=True) as staged:
        yield staged
        write_json(staged / MARKER, {"fingerprint": plain(fingerprint)})


def discard(out: Path, ours: Collection[str]) -> None:
    """Remove the named entries of ``out`` and its marker; leave everything else alone."""
    trash = out / TRASH
    for name in (TRASH, *ours, MARKER):
        path = out / name
        if path.is_dir() and not path.is_symlink():
            # Renamed first: a kill halfway must not leave half a checkpoint under its real name.
            if path != trash:
                path = path.rename(trash)
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
