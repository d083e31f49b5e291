"""Run a command in a process of its own and measure its time and peak memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

POLL_SECONDS = 0.02


class Usage(NamedTuple):
    """Resources of a finished process."""

    seconds: float
    peak_bytes: int
    """High-water mark of the resident memory."""


def run_measured(
    command: Sequence[str], environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Usage:
    """Run a command and measure it; its standard output is discarded.

    The peak is `VmHWM` of /proc/PID/status, read until the process ends: at most the growth of the
    last `POLL_SECONDS` is missed. `ru_maxrss` of `wait4` is not used, because Linux counts the
    parent's memory at the time of the fork as the child's.

    Args:
        command: program and arguments.
        environment: environment variables; None for those of this process.
        cwd: working directory.

    Raises:
        SystemExit: the command fails.
    """
    started = time.monotonic()
    peak = 0
    with subprocess.Popen(command, env=environment, cwd=cwd, stdout=subprocess.DEVNULL) as process:
        status = Path(f"/proc/{process.pid}/status")
        while process.poll() is None:
            peak = max(peak, _high_water_mark(status))
            time.sleep(POLL_SECONDS)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}")
    return Usage(time.monotonic() - started, peak)


def _high_water_mark(status: Path) -> int:
    """Peak resident memory in bytes, 0 once the process has released its memory."""
    for line in status.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0
