"""Cache with a byte budget for several passes over the same keys in the same order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

PINNED_SHARE = 0.75
"""Part of the budget for entries that are never evicted."""


class BoundedCache(Generic[K, V]):
    """Values by key: the first ones stay, the others are evicted least recently used first.

    An evaluation reads its items several times in one order (answers, then log-probabilities or
    divergences). If their values exceed the budget, a plain LRU cache evicts each of them before
    its next use, and no pass after the first has a hit. Here the values that are added first fill
    `PINNED_SHARE` of the budget and stay, so that each later pass finds at least these. The rest
    of the budget is an LRU cache for keys that recur within a pass.

    Safe for use by several threads.

    Args:
        max_bytes: budget for the sum of the sizes given to `add`; 0 stores nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._pinned: dict[K, V] = {}
        self._recent: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._pinned_bytes = 0
        self._recent_bytes = 0
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the stored values."""
        return self._pinned_bytes + self._recent_bytes

    def __len__(self) -> int:
        return len(self._pinned) + len(self._recent)

    def get(self, key: K) -> V | None:
        """Return the value of a key, or None if it is not stored."""
        with self._lock:
            if key in self._pinned:
                return self._pinned[key]
            if key not in self._recent:
                return None
            self._recent.move_to_end(key)
            return self._recent[key][0]

    def add(self, key: K, value: V, nbytes: int) -> None:
        """Store a value of `nbytes` bytes unless its key is stored; evict others over the budget.

        A value that exceeds the budget by itself is not stored.
        """
        with self._lock:
            if key in self._pinned or key in self._recent:
                return
            if self._pinned_bytes + nbytes <= PINNED_SHARE * self.max_bytes:
                self._pinned[key] = value
                self._pinned_bytes += nbytes
            else:
                self._recent[key] = value, nbytes
                self._recent_bytes += nbytes
            while self._recent and self.nbytes > self.max_bytes:
                _, (_, size) = self._recent.popitem(last=False)
                self._recent_bytes -= size

    def clear(self) -> None:
        """Drop all values."""
        with self._lock:
            self._pinned.clear()
            self._recent.clear()
            self._pinned_bytes = self._recent_bytes = 0
