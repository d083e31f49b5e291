"""Exit codes, and one-line messages for errors that the user can fix.

| code | meaning |
|---|---|
| 0 | done; `compare`, `run --gate` and `pixels --write`: PASS |
| 1, 4 | `compare`, `run --gate` and `pixels --write`: FAIL, INCONCLUSIVE |
| 1 | `verify`: a layer does not agree |
| 2 | wrong usage or unusable input |
| 3 | interrupted; the same command resumes |
| 70 | a defect of vlpress: a traceback follows |
"""

from __future__ import annotations

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from ..common.environment import is_distributed

UNUSABLE = 2
INTERRUPTED = 3
DEFECT = 70  # EX_SOFTWARE of sysexits.h; Python's own 1 would read as FAIL
RESUMABLE = ("run", "quantize", "eval", "pixels")
VERDICT_CODES = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 4}

RESUME = "rerun the same command to resume"
_FULL = "make room and give the same command again, or give another folder"
_READ_ONLY = "give a folder that can be written to"
DISK_REMEDIES = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: _FULL,
    errno.EROFS: _READ_ONLY,
    errno.EACCES: _READ_ONLY,
    errno.EPERM: _READ_ONLY,
}
"""Remedies of disk errors, whose own messages have none."""

# typer has its own copy of click in some versions and click itself in others; the public name
# BadParameter leads to the right UsageError in both.
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in DISK_REMEDIES:
        path = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{path}; {DISK_REMEDIES[error.errno]}"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(str(message).split()) or type(error).__name__


_signals: list[int] = []
"""Signals received."""


def stop(signum: int, frame: object) -> None:
    """Record a signal and raise an interrupt."""
    _signals.append(signum)
    raise KeyboardInterrupt


@contextmanager
def _interrupts() -> Iterator[None]:
    """Treat an error raised while handling a signal as an interrupt.

    Compiled code that a signal reaches may raise an error of its own instead.
    """
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
    """Map the errors of a verb to a line on standard error and an exit code."""
    try:
        with _interrupts():
            yield
    except KeyboardInterrupt as interrupt:
        cause = "interrupted"
        if is_distributed():  # torchrun also ends the other processes when one has ended
            cause += ", or another process of this run ended"
        remedy = RESUME if ctx.invoked_subcommand in RESUMABLE else ""
        typer.echo("; ".join(filter(None, [cause, str(interrupt) or remedy])), err=True)
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        raise
    except ConnectionAbortedError as error:  # another process of a distributed run ended
        typer.echo(f"vlpress: {error}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    except (_UsageError, ValueError, OSError) as error:
        if ctx.params.get("show_traceback"):
            traceback.print_exc()
        typer.echo(f"vlpress: error: {_one_line(error)}", err=True)
        raise typer.Exit(UNUSABLE) from None


class Verbs(TyperGroup):
    """Command group whose verbs end with the exit codes above."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse the options before the verb; without arguments, show the help."""
        if not args:
            return super().parse_args(ctx, args)
        with _mapped(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; see the module's table."""
        with _mapped(ctx):
            return super().invoke(ctx)
