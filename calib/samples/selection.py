"""Random selection of samples from a source, with replacement of unusable ones."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
MAX_LISTED = 5
"""Maximum number of unusable entries that an error lists."""


@dataclass(frozen=True)
class Source(Generic[T]):
    """Entries to draw from; an entry is read when it is drawn."""

    name: str
    """Name given by the user."""
    count: int
    read: Callable[[int], T]
    """Reads the entry of an index; raises ValueError or OSError if it is unusable."""
    locate: Callable[[int], str]
    """Returns the location of an entry for messages: file and line, or dataset and row."""


@dataclass(frozen=True)
class Draw(Generic[T]):
    """Drawn samples in the source's order."""

    samples: list[T]
    tokens: list[int]
    """Length of each sample from `measure`; empty without it."""
    skipped: tuple[str, ...] = ()
    """Location and error of each unusable entry."""


def draw(
    source: Source[T],
    n: int,
    seed: int,
    *,
    measure: Callable[[T], int] | None = None,
    skip_bad: int = 0,
) -> Draw[T]:
    """Draw `n` entries at random, and further ones for those that are skipped.

    Args:
        source: entries to draw from; of a source with fewer all are used, with a warning.
        n: number of entries.
        seed: seed of the draw. Without skipped entries, it alone decides which are drawn.
        measure: returns the number of tokens of a sample; raises ValueError or OSError if the
            model cannot process it.
        skip_bad: maximum number of unusable entries to skip.

    Raises:
        ValueError: more entries are unusable (the message counts them and lists the first five), or
            no usable one is left.
    """
    generator = random.Random(seed)
    drawn = _first(source.count, n, generator)
    usable: dict[int, tuple[T, int]] = {}
    faults: dict[int, str] = {}

    def examine(index: int) -> None:
        try:
            sample = source.read(index)
            usable[index] = (sample, measure(sample) if measure else 0)
        except (ValueError, OSError) as error:
            faults[index] = f"{source.locate(index)}: {' '.join(str(error).split())}"

    for index in drawn:
        examine(index)
    others = _others(source.count, drawn, generator)
    while len(faults) <= skip_bad and len(usable) < min(n, source.count):
        if (other := next(others, None)) is None:
            break
        examine(other)
    if len(faults) > skip_bad:
        raise ValueError(_refusal(source, faults, len(usable), skip_bad))
    skipped = tuple(faults.values())
    if not usable:
        raise ValueError(f"calibration source {source.name} has no usable sample: {skipped[0]}")
    if len(usable) < n:
        kind = "usable samples" if skipped else "samples"
        logger.warning(
            "calibration source %s has only %d %s of %d", source.name, len(usable), kind, n
        )
    in_order = [usable[index] for index in sorted(usable)]
    tokens = [length for _, length in in_order] if measure else []
    return Draw([sample for sample, _ in in_order], tokens, skipped)


def _first(count: int, n: int, generator: random.Random) -> list[int]:
    if count <= n:
        return list(range(count))
    return sorted(generator.sample(range(count), n))


def _others(count: int, drawn: Iterable[int], generator: random.Random) -> Iterator[int]:
    """Yield all other indices in random order; the generator is used only if one is needed."""
    rest = sorted(set(range(count)).difference(drawn))
    generator.shuffle(rest)
    yield from rest


def _refusal(source: Source[T], faults: dict[int, str], usable: int, skip_bad: int) -> str:
    messages = [fault for _, fault in sorted(faults.items())]
    if len(messages) == 1:
        return f"{messages[0]}; correct it, or skip it with --skip-bad-samples 1"
    more = f"; and {len(messages) - MAX_LISTED} more" if len(messages) > MAX_LISTED else ""
    allowed = f" (allowed: {skip_bad})" if skip_bad else ""
    return (
        f"{source.name}: {len(messages)} of the {usable + len(messages)} drawn samples are unusable"
        f"{allowed}: {'; '.join(messages[:MAX_LISTED])}{more}; correct them, or skip them with "
        f"--skip-bad-samples {len(messages)}"
    )
