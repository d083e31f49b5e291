"""One command at a time in an output folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def sole_use(out: Path) -> Iterator[None]:
    """Keep other commands out of an output folder for the length of a `with` block.

    The lock is a file beside the folder, and goes with the process that holds it.

    Raises:
        ValueError: another command works there, or no folder can be there.
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
                path.unlink(missing_ok=True)  # while it is held: nobody waits for it
    except Timeout:
        raise ValueError(
            f"output folder {out} is in use by another vlpress; wait for it or give another folder"
        ) from None
