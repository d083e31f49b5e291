"""Remaining time of a verb with several stages: estimates, corrected by the work that was done."""

from __future__ import annotations

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
