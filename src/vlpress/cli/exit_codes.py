"""How a command ends: one line for what the user can mend, and the exit codes.

| code | meaning |
|---|---|
| 0 | done; ``compare`` and ``run --gate``: PASS |
| 1, 4 | ``compare`` and ``run --gate``: FAIL, INCONCLUSIVE |
| 2 | wrong usage or unusable input |
| 3 | interrupted; the same command resumes |
| 70 | a defect of vlpress: a traceback follows |
"""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

UNUSABLE = 2
INTERRUPTED = 3
DEFECT = 70  # EX_SOFTWARE of sysexits.h; Python's own 1 would read as FAIL
RESUMABLE = ("run", "quantize", "eval")
VERDICT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 4}

_ROOM = "make room and give the same command again, or give another folder"
_PLACE = "give a folder that can be written to"
DISK = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _ROOM,
    errno.EROFS: _PLACE,
    errno.EACCES: _PLACE,
    errno.EPERM: _PLACE,
}
"""What to do about errors of the disk, which name no remedy themselves."""

# typer has its own copy of click in some versions and click itself in others; the public name
# BadParameter leads to the right UsageError in both.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def is_shared() -> bool:
    """Whether torchrun started this process with others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ["WORLD_SIZE"]) > 1


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in DISK:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}; {DISK[error.errno]}"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(str(message).split()) or type(error).__name__


_signals: list[int] = []
"""What this process was asked to stop by."""


def stop(signum: int, frame: object) -> None:
    """Handle a signal as an interrupt that is remembered."""
    _signals.append(signum)
    raise KeyboardInterrupt


@contextmanager
def _interrupts() -> Iterator[None]:
    """Take what an interrupt became for an interrupt: compiled code may raise errors of its own."""
    try:
        yield
    except typer.Exit:
        raise
    except Exception as error:
        if _signals:
            raise KeyboardInterrupt from error
        raise


@contextmanager
def _mapped(ctx: Any) -> Iterator[None]:
    """Turn the errors of a verb into a line on standard error and an exit code."""
    try:
        with _interrupts():
            yield
    except KeyboardInterrupt as interrupt:
        resumable = ctx.invoked_subcommand in RESUMABLE
        after = "the same command goes on where it stopped" if resumable else ""
        # Of processes that share the work, torchrun ends the others when one has ended.
        what = "interrupted, or another process of this run ended" if is_shared() else "interrupted"
        _say("; ".join(filter(None, [what, str(interrupt) or after])))
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise
    except ConnectionAbortedError as lost:  # of a process that shared the work
        _say(f"vlpress: {lost}")
        raise typer.Exit(INTERRUPTED) from None
    except (_UsageError, ValueError, OSError) as error:
        if ctx.params.get("show_traceback"):
            traceback.print_exc()
        _say(f"vlpress: error: {_one_line(error)}")
        raise typer.Exit(UNUSABLE) from None


class Verbs(TyperGroup):
    """The command group whose verbs end with the exit codes above."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Read the options before the verb; without any argument this shows the help."""
        if not args:
            return super().parse_args(ctx, args)
        with _mapped(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; see the module's table."""
        with _mapped(ctx):
            return super().invoke(ctx)
