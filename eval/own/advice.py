"""Advice on the number of questions that a verdict needs."""

from __future__ import annotations

from ..stats.sample_size import questions_to_pass
from ..stats.statistics import PairedOutcome, bounds_in_points


def smallest_margin(n: int) -> float:
    """Return the smallest margin in points at which `n` questions can give PASS.

    That is the one-sided bound of the loss if no answer flips.

    Args:
        n: questions, at least 1.

    >>> round(smallest_margin(133), 2)
    1.99
    """
    return -bounds_in_points(PairedOutcome(n=n, lost=0, won=0)).low


def most_losses(n: int, margin: float) -> int | None:
    """Return the most answers that may become wrong for a PASS, if none becomes right.

    Args:
        n: questions, at least 1.
        margin: allowed loss in points.

    Returns:
        None if not even a model that loses no answer passes.
    """

    def passes(lost: int) -> bool:
        needed = questions_to_pass(lost, 0, margin)
        return needed is not None and needed <= n

    if not passes(0):
        return None
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if passes(middle) else (low, middle - 1)
    return low


def advise(n: int, margin: float) -> str:
    """Describe what a number of questions can decide, in one sentence.

    Args:
        n: questions of a benchmark, at least 1.
        margin: allowed loss in points.
    """
    losses = most_losses(n, margin)
    if losses is not None:
        most = "one more answer becomes" if losses == 1 else f"{losses} more answers become"
        limit = "no answer becomes" if losses == 0 else f"at most {most}"
        return f"{n} questions can show a loss below {margin:g} points if {limit} wrong"
    least = questions_to_pass(0, 0, margin)
    more = f", which takes at least {least}" if least is not None else ""
    return (
        f"{n} questions cannot show a loss below {margin:g} points{more}; they can decide a margin "
        f"of {smallest_margin(n):.1f} points or more (--margin)"
    )
