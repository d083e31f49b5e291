"""Commands that a signal interrupts."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable


def stop_when(
    command: list[str], by: signal.Signals, ready: Callable[[], bool]
) -> subprocess.CompletedProcess[str]:
    """Start a command, send `by` once `ready()`, and return its exit code and output."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
        time.sleep(0.005)
    process.send_signal(by)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, out, err)
