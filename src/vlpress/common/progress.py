"""Progress on standard error: rich bars, or plain log lines when stderr is not a terminal.

Standard output is reserved for the result, so that `--json` can be piped. Every stage shows its
current item (layer, error), the remaining time and the peak memory so far.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
)

from .schedule import Schedule, StageClock

PLAIN_INTERVAL = 5.0  # seconds between two lines of a stage when there is no terminal

Update = Callable[[int, int, str], None]
"""`update(done, total, detail)`, called by a stage after each step."""

TaskUpdate = Callable[[str, int, int, str], None]
"""`update(task, done, total, detail)`, the same for several tasks in turn."""

logger = logging.getLogger("vlpress")


def peak_memory() -> int:
    """Return the peak memory of this process in bytes: GPU memory if one is in use, else RSS."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return int(torch.cuda.max_memory_allocated())
    try:
        # Not ru_maxrss: a child process starts with its parent's peak.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # not Linux
        return _peak_elsewhere()


def _peak_elsewhere() -> int:
    """The peak of the resident memory on systems other than Linux, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # POSIX only

    # 1024: BSD counts KiB; macOS counts bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def format_bytes(count: float) -> str:
    """Format a number of bytes with a binary unit: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """Format a duration: `0:07`, `12:40`, `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


@dataclass
class Reporter:
    """Output of stages, notes and warnings on standard error.

    With `quiet`, stages and steps are not shown; notes and warnings are.
    """

    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    quiet: bool = False
    schedule: Schedule | None = None
    """Expected stages of the whole verb, for the time that is left of it."""

    def note(self, text: str) -> None:
        """Print one permanent line."""
        self.console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a highlighted line that starts with WARNING."""
        self.console.print(f"WARNING: {text}", style="bold yellow", markup=False, soft_wrap=True)

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Show work that has no count: a spinner on a terminal, otherwise one line."""
        if self.quiet:
            yield
        elif self.console.is_terminal:
            with self.console.status(title):
                yield
        else:
            self.note(title)
            yield

    @contextmanager
    def stage(self, title: str) -> Iterator[Update]:
        """Show one stage; yield its `Update`."""
        if self.quiet:
            yield lambda done, total, detail: None
        elif self.console.is_terminal:
            with self._bars() as bars:
                clock = StageClock(title, self.schedule)
                yield _bar(bars, bars.add_task(title, total=None, detail="", state=""), clock)
        else:
            plain = _PlainStage(title, self.note, StageClock(title, self.schedule))
            yield plain.update
            plain.finish()

    @contextmanager
    def stages(self, title: str, *, again: str = "second pass") -> Iterator[TaskUpdate]:
        """Show one stage per task; yield their `TaskUpdate`.

        Args:
            title: precedes the task's name.
            again: replaces the title in the second stage of a task.
        """
        shown: dict[str, int] = {}
        current: tuple[str, Update] | None = None
        with ExitStack() as stack:

            def update(task: str, done: int, total: int, detail: str) -> None:
                nonlocal current
                if current is None or current[0] != task or done < shown[task]:
                    stack.close()
                    lead = again if task in shown else title
                    current = task, stack.enter_context(self.stage(f"{lead} {task}"))
                shown[task] = done
                current[1](done, total, detail)

            yield update

    def _bars(self) -> Progress:
        return Progress(
            TextColumn("{task.description:<40}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TextColumn("{task.fields[detail]}", markup=False),
            console=self.console,
        )


def silent() -> Reporter:
    """Return a reporter without any output."""
    return Reporter(Console(quiet=True), quiet=True)


class LogReporter(Reporter):
    """Sends notes and warnings to the `vlpress` logger; shows no stages."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True), quiet=True)

    def note(self, text: str) -> None:
        """Log at level INFO."""
        logger.info("%s", text)

    def warn(self, text: str) -> None:
        """Log at level WARNING."""
        logger.warning("%s", text)


class WarningHandler(logging.Handler):
    """Shows logged warnings through a reporter, which prints them above its progress bars."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        """Show one record."""
        self._reporter.warn(record.getMessage())


@contextmanager
def reporting(progress: bool, *, rank: int = 0) -> Iterator[Reporter]:
    """Yield the reporter of a verb.

    Args:
        progress: on standard error, which then also shows logged warnings; otherwise notes and
            warnings are logged.
        rank: of this process in a distributed run; only rank 0 reports.
    """
    if not progress and rank == 0:
        yield LogReporter()
        return
    reporter = Reporter() if rank == 0 else silent()
    handler = WarningHandler(reporter)
    logger.addHandler(handler)
    try:
        yield reporter
    finally:
        logger.removeHandler(handler)


def _times_left(clock: StageClock) -> list[str]:
    """Describe the time left of a stage and of the whole verb, as far as they are known."""
    left = ((clock.stage_left(), "left"), (clock.verb_left(), "until the end"))
    return [f"{format_seconds(seconds)} {of}" for seconds, of in left if seconds is not None]


def _bar(bars: Progress, task: TaskID, clock: StageClock) -> Update:
    def update(done: int, total: int, detail: str) -> None:
        clock.record(done, total)
        parts = [*_times_left(clock), f"peak {format_bytes(peak_memory())}"]
        bars.update(task, completed=done, total=total, detail=detail, state=", ".join(parts))

    return update


class _PlainStage:
    """A stage as lines: its first and last steps, and one line every few seconds."""

    def __init__(self, title: str, write: Callable[[str], None], clock: StageClock) -> None:
        self._title = title
        self._write = write
        self._clock = clock
        self._shown: float | None = None
        self._last = (0, 0, "")

    def update(self, done: int, total: int, detail: str) -> None:
        self._last = (done, total, detail)
        self._clock.record(done, total)
        if self._shown is None or self._clock.seconds - self._shown >= PLAIN_INTERVAL:
            self._show()

    def finish(self) -> None:
        done, total, _ = self._last
        duration = format_seconds(self._clock.elapsed())
        peak = format_bytes(peak_memory())
        count = f" {done}/{total}" if total else ""
        self._write(f"{self._title}:{count} done in {duration}, peak {peak}")

    def _show(self) -> None:
        self._shown = self._clock.seconds
        done, total, detail = self._last
        parts = [f"{self._title}: {done}/{total}", *_times_left(self._clock)]
        parts.append(f"peak {format_bytes(peak_memory())}")
        if detail:
            parts.append(detail)
        self._write(", ".join(parts))
