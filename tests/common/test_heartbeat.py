"""Dead ranks and lost stores, with a clock that tests advance."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from vlpress.common.heartbeat import RESUMABLE, Heartbeat

TIMEOUT = 10.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class DictStore:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.is_lost = False

    def set(self, key: str, value: str) -> None:
        if self.is_lost:
            raise RuntimeError("connection reset by peer")
        self.values[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        return self.values[key]


def heartbeats(world_size: int) -> tuple[Clock, DictStore, list[Heartbeat]]:
    clock, store = Clock(), DictStore()
    ranks = range(world_size)
    return clock, store, [Heartbeat(store, r, world_size, "gone", TIMEOUT, clock) for r in ranks]


def test_ranks_that_advance_are_alive() -> None:
    clock, _, (first, second) = heartbeats(2)
    for _ in range(20):
        clock.now += TIMEOUT
        assert first.beat() and second.beat()


def test_a_rank_is_dead_once_its_counter_stands_for_the_timeout() -> None:
    clock, _, (first, second) = heartbeats(2)
    assert first.beat() and second.beat() and first.beat()
    clock.now = TIMEOUT
    assert first.beat()
    clock.now = TIMEOUT + 0.1
    assert not first.beat()
    second.beat()  # only late
    assert first.beat()


def test_a_rank_that_never_started_is_dead_after_the_timeout() -> None:
    clock, _, (first, _) = heartbeats(2)
    clock.now = TIMEOUT
    assert first.beat()
    clock.now = TIMEOUT + 0.1
    assert not first.beat()


def test_a_lost_store_means_that_all_are_dead() -> None:
    _, store, (only,) = heartbeats(1)
    assert only.beat()
    store.is_lost = True
    assert not only.beat()


def test_the_thread_beats_until_the_block_ends() -> None:
    has_beaten = threading.Event()

    class Watched(Heartbeat):
        def beat(self) -> bool:
            has_beaten.set()
            return super().beat()

    with Watched(DictStore(), 0, 1, "gone", timeout=0.004) as heartbeat:
        assert has_beaten.wait(timeout=60)
    assert not heartbeat._thread.is_alive()


PROGRAM = """
import time
from vlpress.common.heartbeat import Heartbeat

class Store(dict):
    def set(self, key, value):
        raise RuntimeError("the store is gone")

with Heartbeat(Store(), 0, 1, "another rank is gone", timeout=0.01):
    time.sleep(60)
"""


def test_the_process_exits_although_its_main_thread_is_blocked() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=50
    )
    assert ended.returncode == RESUMABLE == 3
    assert ended.stderr == "vlpress: another rank is gone\n"


@pytest.mark.parametrize("world_size", [1, 3])
def test_ranks_count_from_their_start(world_size: int) -> None:
    _, store, members = heartbeats(world_size)
    assert all(member.beat() for member in members)
    assert len(store.values) == world_size
