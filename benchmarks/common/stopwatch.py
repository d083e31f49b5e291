"""Time of work that may be interrupted and resumed."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Elapsed:
    """Time of one stage over all of its sessions."""

    seconds: float
    is_complete: bool
    """False if a session was killed: its time is unknown, and the sum a lower bound."""


class Stopwatch:
    """Measures the stages of one piece of work.

    Args:
        file: one line per start and end of a session.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    @contextmanager
    def session(self, stage: str) -> Iterator[None]:
        """Measure a session of a stage; one that ends by an exception counts as well."""
        self._append({"stage": stage, "event": "start"})
        started = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            self._append({"stage": stage, "event": "end", "seconds": seconds})

    def elapsed(self, stage: str) -> Elapsed:
        """Sum of the sessions of a stage."""
        text = self._file.read_text("utf-8") if self._file.is_file() else ""
        entries = [entry for entry in map(json.loads, text.splitlines()) if entry["stage"] == stage]
        ends = [entry["seconds"] for entry in entries if entry["event"] == "end"]
        return Elapsed(sum(ends), 2 * len(ends) == len(entries))

    def _append(self, entry: dict[str, object]) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
