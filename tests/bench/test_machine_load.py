"""The CPU load of a measurement, on a machine with fake clocks."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlpress.bench.machine_load import LoadMeter, describe_load, is_busy, joined_load

Own = namedtuple("Own", "user system children_user children_system iowait")
All = namedtuple("All", "user nice system idle iowait irq softirq steal guest guest_nice")


class FakeMachine:
    """Two cores and their CPU times, advanced by `run`."""

    def __init__(self) -> None:
        self.wall = 100.0
        self.own = Own(5.0, 1.0, 0.5, 0.0, 9.0)
        self.all = All(50.0, 0.0, 7.0, 500.0, 3.0, 0.0, 0.0, 1.0, 4.0, 0.0)

    def run(self, seconds: float, *, own: float, others: float, stolen: float = 0.0) -> None:
        self.wall += seconds
        self.own = self.own._replace(user=self.own.user + own)
        used = self.all.user + own + others
        # Linux counts guest time in `user` too; iowait uses no core.
        self.all = self.all._replace(
            user=used,
            steal=self.all.steal + stolen,
            guest=self.all.guest + others,
            iowait=self.all.iowait + seconds,
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    machine = FakeMachine()

    class Process:
        def cpu_times(self) -> Own:
            return machine.own

    monkeypatch.setattr("vlpress.bench.machine_load.psutil.Process", Process)
    monkeypatch.setattr("vlpress.bench.machine_load.psutil.cpu_times", lambda: machine.all)
    monkeypatch.setattr("vlpress.bench.machine_load.psutil.cpu_count", lambda: 2)
    monkeypatch.setattr("vlpress.bench.machine_load.time.perf_counter", lambda: machine.wall)
    monkeypatch.setattr("vlpress.bench.machine_load.torch.get_num_threads", lambda: 2)
    return machine


def test_used_cores_of_this_process_and_of_others(fake: FakeMachine) -> None:
    meter = LoadMeter()
    fake.run(10.0, own=12.0, others=5.0, stolen=2.0)
    load = meter.read()
    assert (load["seconds"], load["cores"], load["threads"]) == (10.0, 2, 2)
    assert (load["own_cores"], load["other_cores"]) == (1.2, 0.7)


@pytest.mark.parametrize(
    ("threads", "others", "busy"),
    [(2, 0.0, False), (2, 0.2, False), (2, 0.9, True), (1, 0.9, False)],
)
def test_machine_is_busy_if_threads_and_others_exceed_its_cores(
    threads: int, others: float, busy: bool
) -> None:
    assert is_busy({"threads": threads, "other_cores": others, "cores": 2}) is busy


def made_load(**changed: Any) -> dict[str, Any]:
    return {
        "began": "2026-11-29T23:58:00+00:00",
        "ended": "2026-11-29T23:59:00+00:00",
        "seconds": 60.0,
        "cores": 2,
        "threads": 2,
        "own_cores": 1.5,
        "other_cores": 0.0,
        **changed,
    }


def test_description_has_time_threads_and_a_busy_machine() -> None:
    idle = describe_load(made_load())
    assert "2026-11-29 23:58 to 23:59" in idle and "2 threads on 2 cores" in idle
    assert "BUSY" not in idle
    busy = describe_load(made_load(other_cores=1.26, threads=1, ended="2026-11-30T00:03:00+00:00"))
    assert "1 thread on 2 cores" in busy and "2026-11-30 00:03" in busy
    assert "BUSY" in busy and "1.3" in busy


@given(st.floats(0.1, 1e5), st.floats(0.1, 1e5), st.floats(0, 64), st.floats(0, 64))
def test_joined_loads_keep_the_cpu_time(a: float, b: float, left: float, right: float) -> None:
    first = made_load(seconds=a, other_cores=left, began="2026-11-01T00:00:00+00:00")
    both = joined_load(first, made_load(seconds=b, other_cores=right))
    assert both["began"] == first["began"] and both["ended"] == made_load()["ended"]
    assert both["seconds"] == pytest.approx(a + b, abs=1e-3)
    assert both["other_cores"] == pytest.approx((a * left + b * right) / (a + b), abs=0.006)


def test_join_with_no_earlier_load() -> None:
    assert joined_load(None, made_load()) == made_load()
