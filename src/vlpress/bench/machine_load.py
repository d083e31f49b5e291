"""CPU load while something is measured: how many cores this process and all others used.

A speed that was measured beside other work says little, and the scores do not show it. The load
average would not do: it lags by a minute and counts this process too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psutil
import torch

SLACK = 0.25
"""Cores that others may use beyond those left over before a machine counts as busy."""
_IDLE = ("idle", "iowait")
_COUNTED_TWICE = ("guest", "guest_nice")  # Linux includes them in user and nice


@dataclass(frozen=True)
class _Reading:
    wall: float  # seconds
    own: float  # CPU seconds of this process and its children
    all: float  # CPU seconds of the machine, stolen ones included

    @classmethod
    def now(cls) -> _Reading:
        own, machine = psutil.Process().cpu_times(), psutil.cpu_times()._asdict()
        used = (v for k, v in machine.items() if k not in (*_IDLE, *_COUNTED_TWICE))
        return cls(time.perf_counter(), sum(own[:4]), sum(used))


class LoadMeter:
    """Measures the load from its creation on."""

    def __init__(self) -> None:
        self._began = datetime.now().astimezone()
        self._first = _Reading.now()

    def read(self) -> dict[str, Any]:
        """What was used until now.

        Returns:
            `began` and `ended` (ISO 8601, local time), `seconds`, `cores`, `threads` (those torch
            computes with), and `own_cores` and `other_cores`, the average numbers of cores that
            this process and all others used.
        """
        last, first = _Reading.now(), self._first
        seconds = max(last.wall - first.wall, 1e-9)
        own, everything = last.own - first.own, last.all - first.all
        return {
            "began": self._began.isoformat(timespec="seconds"),
            "ended": datetime.now().astimezone().isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "cores": psutil.cpu_count() or 1,
            "threads": torch.get_num_threads(),
            "own_cores": round(own / seconds, 2),
            "other_cores": round(max(0.0, everything - own) / seconds, 2),
        }


def is_busy(load: Mapping[str, Any]) -> bool:
    """Whether other processes needed cores that this one computes with.

    Args:
        load: what `LoadMeter.read` returned.
    """
    return bool(load["threads"] + load["other_cores"] > load["cores"] + SLACK)


def joined_load(first: Mapping[str, Any] | None, second: Mapping[str, Any]) -> dict[str, Any]:
    """The load of two periods of one measurement, such as one that was interrupted and resumed.

    Cores used are averaged over both, weighted by their seconds.
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
    """One phrase for reports: when it was measured, and beside what."""
    began, ended = (datetime.fromisoformat(load[key]) for key in ("began", "ended"))
    until = f"{ended:%H:%M}" if began.date() == ended.date() else f"{ended:%Y-%m-%d %H:%M}"
    threads = f"{load['threads']} thread{'' if load['threads'] == 1 else 's'}"
    text = f"{began:%Y-%m-%d %H:%M} to {until}, {threads} on {load['cores']} cores"
    if not is_busy(load):
        return text
    return f"{text}, BUSY: other processes used {load['other_cores']:.1f} of them"
