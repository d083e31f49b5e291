"""Selection of a few values for measurements that need not read all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spread(values: Sequence[T], most: int) -> list[T]:
    """Select values at equal distances, beginning with the first: always the same ones.

    Args:
        values: in their order, which is kept.
        most: largest number of selected ones.
    """
    count = min(most, len(values))
    return [values[index * len(values) // count] for index in range(count)]
