"""Finding out that another process is gone, even if its machine is and nobody closes a connection.

Each process counts up a number of its own in a store that all reach; one whose number stands still
for too long is gone, and so is everybody if the store is.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import Protocol

INTERVAL = 2.0
LONGEST = 45.0
"""Seconds between two beats, and without one until a process counts as gone."""
GONE = 3  # the exit code of what can go on later


class Store(Protocol):
    """What is asked of `torch.distributed.Store`."""

    def set(self, key: str, value: str) -> None:
        """Put a value there for all."""
        ...

    def check(self, keys: list[str]) -> bool:
        """Whether all keys are there."""
        ...

    def get(self, key: str) -> bytes:
        """A value that is there."""
        ...


class Heartbeat:
    """Shows that this process lives and ends it when another one does not; a `with` block.

    A thread does this: the main one may wait for the others in a call that never returns.

    Args:
        store: for this use alone; its calls block.
        index: of this process.
        count: of all.
        last_words: what to say on standard error before the process ends with code 3.
        longest: seconds without a beat of another process.
    """

    def __init__(
        self, store: Store, index: int, count: int, last_words: str, longest: float = LONGEST
    ) -> None:
        self._store, self._index, self._words, self._longest = store, index, last_words, longest
        self._interval = min(INTERVAL, longest / 4)
        self._last = dict.fromkeys((i for i in range(count) if i != index), (b"", time.monotonic()))
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

    def _run(self) -> None:
        beat = 0
        while not self._stop.wait(self._interval):
            beat += 1
            try:
                self._store.set(_key(self._index), str(beat))
                living = self._others_live()
            except RuntimeError:  # the store is gone, and its machine with it
                living = False
            if not living and not self._stop.is_set():
                self._end()

    def _others_live(self) -> bool:
        now = time.monotonic()
        for other, (before, since) in self._last.items():
            key = _key(other)
            found = self._store.get(key) if self._store.check([key]) else b""
            if found != before:
                self._last[other] = found, now
            elif now - since > self._longest:
                return False
        return True

    def _end(self) -> None:
        print(f"vlpress: {self._words}", file=sys.stderr, flush=True)
        os._exit(GONE)  # at once: the main thread may be in a call that nothing interrupts


def _key(index: int) -> str:
    return f"vlpress-pulse-{index}"
