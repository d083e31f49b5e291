import subprocess
import sys
import time

import pytest

from vlpress.common.heartbeat import Heartbeat

PROGRAM = """
import sys, time
from vlpress.calib.pulse import Heartbeat

class Store(dict):
    def set(self, key, value):
        if {broken}:
            raise RuntimeError("the store is gone")
        self[key] = value.encode()
    def check(self, keys):
        return all(key in self for key in keys)
    def get(self, key):
        return self[key]

with Heartbeat(Store(), 0, {count}, "the other one is gone", longest=0.5):
    time.sleep(30)
"""


@pytest.mark.parametrize("count, broken", [(2, False), (1, True)])
def test_a_process_ends_when_another_one_or_the_store_is_gone(count: int, broken: bool) -> None:
    started = time.monotonic()
    program = PROGRAM.format(count=count, broken=broken)
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert time.monotonic() - started < 25
    assert ended.returncode == 3
    assert ended.stderr == "vlpress: the other one is gone\n"


class Shared:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def set(self, key: str, value: str) -> None:
        self.values[key] = value.encode()

    def check(self, keys: list[str]) -> bool:
        return all(key in self.values for key in keys)

    def get(self, key: str) -> bytes:
        return self.values[key]


def test_two_that_live_let_each_other_be() -> None:
    store = Shared()
    with Heartbeat(store, 0, 2, "gone", longest=0.4), Heartbeat(store, 1, 2, "gone", longest=0.4):
        time.sleep(1.5)
    assert len(store.values) == 2


def test_beats_end_with_the_block() -> None:
    store = Shared()
    with Heartbeat(store, 0, 1, "gone", longest=0.04):
        time.sleep(0.1)
    last = dict(store.values)
    time.sleep(0.1)
    assert last and dict(store.values) == last
