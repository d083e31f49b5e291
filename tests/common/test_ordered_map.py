"""Results in the order of the jobs, with bounded look-ahead."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from vlpress.common.ordered_map import default_threads, ordered_map


def slow_square(job: int) -> int:
    time.sleep(0.002 * (job % 3))
    return job * job


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_are_in_order(threads: int) -> None:
    assert list(ordered_map(slow_square, range(30), threads)) == [n * n for n in range(30)]


@pytest.mark.parametrize("threads", [1, 3])
def test_jobs_are_taken_at_most_twice_the_threads_ahead(threads: int) -> None:
    taken = 0

    def jobs() -> Iterator[int]:
        nonlocal taken
        for job in range(50):
            taken += 1
            yield job

    for done, _ in enumerate(ordered_map(slow_square, jobs(), threads), start=1):
        assert taken - done < 2 * threads


def test_an_error_is_raised_in_its_turn() -> None:
    def fails_at_four(job: int) -> int:
        if job == 4:
            raise ValueError("four")
        return job

    results = []
    with pytest.raises(ValueError, match="four"):
        for result in ordered_map(fails_at_four, range(100), 3):
            results.append(result)
    assert results == [0, 1, 2, 3]


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("0", None), ("x", None), ("", None)])
def test_default_threads(monkeypatch: pytest.MonkeyPatch, value: str, expected: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    assert default_threads() == (expected or 7)
