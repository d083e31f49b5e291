from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from vlpress.common import heap

PROGRAM = """
import gc
from vlpress.common.heap import trim_heap
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
pieces = [bytearray(b"x" * 50000) for _ in range(4000)]
survivors = pieces[::400]  # so that the heap does not shrink from its end
del pieces
gc.collect()
before = resident()
trim_heap()
print(before - resident())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_free_memory_is_returned_to_the_system() -> None:
    command = [sys.executable, "-c", PROGRAM]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(ended.stdout) > 100 * 10**6


def test_other_c_libraries_do_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Library:
        pass

    heap._trim.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    try:
        heap.trim_heap()
        assert heap._trim() is None
    finally:
        heap._trim.cache_clear()
