"""Heartbeat: detect ranks that died without closing their connection, such as on a lost machine.

Each rank increments a counter of its own in a shared store. A rank whose counter has not advanced
within the timeout is dead; if the store is unreachable, all are.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

INTERVAL = 2.0
"""Seconds between two increments of a counter."""
TIMEOUT = 45.0
"""Seconds without an increment after which a rank counts as dead."""
RESUMABLE = 3
"""Exit code of a process that was interrupted and can be resumed."""


class Store(Protocol):
    """The methods of `torch.distributed.Store` that are used."""

    def set(self, key: str, value: str) -> None:
        """Set a value for all ranks."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Return whether all keys exist."""
        ...

    def get(self, key: str) -> bytes:
        """Return the value of an existing key."""
        ...


class Heartbeat:
    """Advances this rank's counter and ends the process if another rank is dead.

    A `with` block starts a thread that does this: the main thread may be blocked in a collective
    call that never returns.

    Args:
        store: for this use alone, because its calls block.
        rank: of this process.
        world_size: number of ranks.
        message: printed to standard error before the process exits with code `RESUMABLE`.
        timeout: seconds without an increment after which a rank counts as dead.
        clock: current time in seconds.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        message: str,
        timeout: float = TIMEOUT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._rank, self._message = store, rank, message
        self._timeout, self._clock = timeout, clock
        self._interval = min(INTERVAL, timeout / 4)
        self._counter = 0
        others = (other for other in range(world_size) if other != rank)
        # Last counter of each other rank, and when it was first seen.
        self._last_seen = dict.fromkeys(others, (b"", clock()))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, _: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def beat(self) -> bool:
        """Advance this rank's counter once; return whether all ranks are alive."""
        self._counter += 1
        try:
            self._store.set(_key(self._rank), str(self._counter))
            return self._others_are_alive()
        except RuntimeError:  # the store is unreachable: its machine is lost
            return False

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            if not self.beat() and not self._stop.is_set():
                self._exit()

    def _others_are_alive(self) -> bool:
        now = self._clock()
        for other, (last_counter, since) in self._last_seen.items():
            key = _key(other)
            counter = self._store.get(key) if self._store.check([key]) else b""
            if counter != last_counter:
                self._last_seen[other] = counter, now
            elif now - since > self._timeout:
                return False
        return True

    def _exit(self) -> None:
        print(f"vlpress: {self._message}", file=sys.stderr, flush=True)
        # Without cleanup: the main thread may be in a call that cannot be interrupted.
        os._exit(RESUMABLE)


def _key(rank: int) -> str:
    return f"vlpress-heartbeat-{rank}"
