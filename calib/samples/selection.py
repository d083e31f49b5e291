"""Drawing samples from a source, and what happens to those that cannot be used."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
SHOWN = 5
"""Unusable entries that an error lists."""


@dataclass(frozen=True)
class Source(Generic[T]):
    """Entries to draw from; each is read when it is drawn."""

    name: str
    """As the user gave it."""
    count: int
    read: Callable[[int], T]
    """Entry of an index; raises ValueError or OSError if it cannot be used."""
    place: Callable[[int], str]
    """Where the entry of an index is: file and line, or dataset and row."""


@dataclass(frozen=True)
class Draw(Generic[T]):
    """Samples in the source's order."""

    samples: list[T]
    tokens: list[int]
    """Length of each sample's prompt, as `measure` returned it; empty without `measure`."""
    skipped: tuple[str, ...] = ()
    """Place and fault of each drawn entry that could not be used."""


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
        source: what to draw from; one with fewer entries is used whole, with a warning.
        n: entries wanted.
        seed: of the draw. Without skipped entries, it alone decides which are drawn.
        measure: tokens of a sample's prompt; raises ValueError or OSError if the model cannot be
            given the sample.
        skip_bad: most unusable entries that are skipped.

    Raises:
        ValueError: more entries are unusable (the message counts them and names the place and fault
            of the first five), or no usable one is left.
    """
    generator = random.Random(seed)
    drawn = _first(source.count, n, generator)
    found: dict[int, tuple[T, int]] = {}
    faults: dict[int, str] = {}

    def examine(index: int) -> None:
        try:
            sample = source.read(index)
            found[index] = (sample, measure(sample) if measure else 0)
        except (ValueError, OSError) as error:
            faults[index] = f"{source.place(index)}: {' '.join(str(error).split())}"

    for index in drawn:
        examine(index)
    others = _others(source.count, drawn, generator)
    while len(faults) <= skip_bad and len(found) < min(n, source.count):
        if (other := next(others, None)) is None:
            break
        examine(other)
    if len(faults) > skip_bad:
        raise ValueError(_refusal(source, faults, len(found), skip_bad))
    skipped = tuple(faults.values())
    if not found:
        raise ValueError(f"calibration source {source.name} has no usable sample: {skipped[0]}")
    if len(found) < n:
        kind = "usable samples" if skipped else "samples"
        logger.warning(
            "calibration source %s has only %d %s, %d wanted", source.name, len(found), kind, n
        )
    usable = [found[index] for index in sorted(found)]
    tokens = [length for _, length in usable] if measure else []
    return Draw([sample for sample, _ in usable], tokens, skipped)


def _first(count: int, n: int, generator: random.Random) -> list[int]:
    if count <= n:
        return list(range(count))
    return sorted(generator.sample(range(count), n))


def _others(count: int, drawn: Iterable[int], generator: random.Random) -> Iterator[int]:
    """All other indices in random order; the generator is not asked before one is needed."""
    rest = sorted(set(range(count)).difference(drawn))
    generator.shuffle(rest)
    yield from rest


def _refusal(source: Source[T], faults: dict[int, str], usable: int, skip_bad: int) -> str:
    told = [fault for _, fault in sorted(faults.items())]
    if len(told) == 1:
        return f"{told[0]}; or do without it: --skip-bad-samples 1"
    more = f"; and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    allowed = f" (allowed: {skip_bad})" if skip_bad else ""
    return (
        f"{source.name}: {len(told)} of the {usable + len(told)} samples drawn cannot be used"
        f"{allowed}: {'; '.join(told[:SHOWN])}{more}; correct them, or do without them: "
        f"--skip-bad-samples {len(told)}"
    )
