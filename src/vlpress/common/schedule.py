"""Remaining time of a verb with several stages: estimates, corrected by the work that was done."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

PRIOR = 0.05
"""Weight of a group's estimate in its correction, first steps are slow."""


@dataclass(frozen=True)
class Expected:
    """A stage and its estimated duration."""

    title: str
    seconds: float
    group: str
    """Stages of a group share a correction: their estimates err in the same direction."""


class Schedule:
    """The stages of a verb in order.

    Stages may be skipped, as in a resumed run: those before the current one count as finished.
    """

    def __init__(self, stages: Sequence[Expected]) -> None:
        self._stages = {stage.title: stage for stage in stages}
        self._title = ""
        self._share = 0.0
        self._running = (0.0, 0.0)
        self._finished = {stage.group: (0.0, 0.0) for stage in stages}
        """By group: estimated and actual seconds of finished stages; `_running` of this one."""

    def record(self, title: str, *, share: float, worked: float, seconds: float) -> None:
        """Record the progress of a stage; one that is not in the list is ignored.

        Args:
            title: of the stage.
            share: fraction of it that is done, 0 to 1.
            worked: fraction that this process did; less than `share` in a resumed stage.
            seconds: that this process took.
        """
        if title not in self._stages:
            return
        if title != self._title and self._title:
            self._finished[self._stages[self._title].group] = self._measured(self._title)
        self._title, self._share = title, share
        self._running = self._stages[title].seconds * worked, seconds

    def seconds_left(self) -> float:
        """Estimate the seconds until the last stage ends."""
        titles = list(self._stages)
        later = titles[titles.index(self._title) + 1 :] if self._title else titles
        rest = self._corrected(self._title) * (1 - self._share) if self._title else 0.0
        return rest + sum(map(self._corrected, later))

    def _measured(self, title: str) -> tuple[float, float]:
        """Estimated and actual seconds of the work in a stage's group."""
        group = self._stages[title].group
        expected, actual = self._finished[group]
        if self._title and self._stages[self._title].group == group:
            expected, actual = expected + self._running[0], actual + self._running[1]
        return expected, actual

    def _corrected(self, title: str) -> float:
        """Multiply an estimate by the ratio of actual to estimated seconds of its group."""
        stage = self._stages[title]
        total = sum(each.seconds for each in self._stages.values() if each.group == stage.group)
        expected, actual = self._measured(title)
        prior = PRIOR * total
        return stage.seconds * (actual + prior) / (expected + prior) if prior else 0.0


class StageClock:
    """Times of a running stage, as part of a schedule if there is one."""

    def __init__(self, title: str, schedule: Schedule | None) -> None:
        self._title, self._schedule = title, schedule
        self._started = time.monotonic()
        self._first: tuple[int, float] | None = None
        """Steps and seconds at the first `record`; earlier steps are not of this process."""
        self._done, self._total = 0, 0
        self.seconds = 0.0
        """From the start to the last `record`."""

    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self._started

    def record(self, done: int, total: int) -> None:
        """Note the progress of the stage: `done` of `total` steps."""
        self._done, self._total, self.seconds = done, total, self.elapsed()
        self._first = self._first or (done, self.seconds)
        if self._schedule is not None and total:
            steps, seconds = self._worked()
            self._schedule.record(
                self._title, share=done / total, worked=steps / total, seconds=seconds
            )

    def stage_left(self) -> float | None:
        """Estimate the seconds until the stage ends; None before the first step."""
        steps, seconds = self._worked()
        return seconds / steps * (self._total - self._done) if steps else None

    def verb_left(self) -> float | None:
        """Estimate the seconds until the last stage ends; None without a schedule."""
        return None if self._schedule is None else self._schedule.seconds_left()

    def _worked(self) -> tuple[int, float]:
        """Return steps and seconds since the first `record`."""
        done, seconds = self._first or (0, 0.0)
        return self._done - done, self.seconds - seconds
