"""CPU load during a measurement: cores used by this process and by all others.

Reports show it because speeds measured on a busy machine are not comparable. The load average is
not used: it lags by a minute and includes this process.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psutil
import torch

from ..common.environment import processor_name

SLACK = 0.25
"""Cores that other processes may use, in addition to the idle ones, before a machine is busy."""
_IDLE = ("idle", "iowait")
_COUNTED_TWICE = ("guest", "guest_nice")  # Linux includes them in user and nice


@dataclass(frozen=True)
class _Reading:
    wall: float  # seconds
    own: float  # CPU seconds of this process and its children
    all: float  # CPU seconds of the machine, including steal time

    @classmethod
    def now(cls) -> _Reading:
        own, machine = psutil.Process().cpu_times(), psutil.cpu_times()._asdict()
        used = (v for k, v in machine.items() if k not in (*_IDLE, *_COUNTED_TWICE))
        return cls(time.perf_counter(), sum(own[:4]), sum(used))


class LoadMeter:
    """Measures the load since its creation."""

    def __init__(self) -> None:
        self._began = datetime.now().astimezone()
        self._first = _Reading.now()

    def read(self) -> dict[str, Any]:
        """Load from the creation of the meter until now.

        Returns:
            `began` and `ended` (ISO 8601, local time), `seconds`, `processor` (model name),
            `cores`, `threads` (of torch), and `own_cores` and `other_cores`, the average numbers of
            cores used by this process and by all others.
        """
        last, first = _Reading.now(), self._first
        seconds = max(last.wall - first.wall, 1e-9)
        own, machine = last.own - first.own, last.all - first.all
        return {
            "began": self._began.isoformat(timespec="seconds"),
            "ended": datetime.now().astimezone().isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "processor": processor_name(),
            "cores": psutil.cpu_count() or 1,
            "threads": torch.get_num_threads(),
            "own_cores": round(own / seconds, 2),
            "other_cores": round(max(0.0, machine - own) / seconds, 2),
        }


def is_busy(load: Mapping[str, Any]) -> bool:
    """Whether other processes competed for this process's cores.

    Args:
        load: from `LoadMeter.read`.
    """
    return bool(load["threads"] + load["other_cores"] > load["cores"] + SLACK)


def joined_load(first: Mapping[str, Any] | None, second: Mapping[str, Any]) -> dict[str, Any]:
    """Join the loads of two periods of one measurement, such as before and after a resume.

    The numbers of cores are averaged, weighted by the seconds of each period.

    Args:
        first: earlier load, None if there is none.
        second: later load.
    """
    if first is None:
        return dict(second)
    seconds = first["seconds"] + second["seconds"]

    def mean(key: str) -> float:
        total = first[key] * first["seconds"] + second[key] * second["seconds"]
        return round(total / seconds, 2) if seconds else 0.0

    return {
        **second,
        "began": first["began"],
        "seconds": round(seconds, 3),
        "own_cores": mean("own_cores"),
        "other_cores": mean("other_cores"),
    }


def describe_load(load: Mapping[str, Any]) -> str:
    """Describe time, threads and load of a measurement in one phrase, for reports."""
    began, ended = (datetime.fromisoformat(load[key]) for key in ("began", "ended"))
    until = f"{ended:%H:%M}" if began.date() == ended.date() else f"{ended:%Y-%m-%d %H:%M}"
    threads = f"{load['threads']} thread{'' if load['threads'] == 1 else 's'}"
    text = f"{began:%Y-%m-%d %H:%M} to {until}, {threads} on {load['cores']} cores"
    if not is_busy(load):
        return text
    return f"{text}, BUSY: other processes used {load['other_cores']:.1f} of them"
