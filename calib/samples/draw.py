"""Draw calibration samples from a source.

A sample is a conversation with its images and the answer, see `sample`. Sources are the built-in
drawings, a JSONL file of `records`, a text file, and a `datasets` dataset. Images stay encoded
until they are needed; each drawn one is decoded once here, so that an error names the line of a
broken file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .sample import Sample, image_digests
from .selection import Draw, Source, draw
from .sources import open_source


def load_samples(source: str | Path | None, *, n: int, seed: int) -> list[Sample]:
    """Draw `n` samples from a source, in the source's order.

    Args:
        source: None or "synthetic" for the built-in drawings; a .jsonl or .txt file; a folder
            written by `datasets` or readable by it; otherwise a dataset's hub id.
        n: number of samples; of a smaller source all are used, with a warning.
        seed: seed of the draw.

    Raises:
        FileNotFoundError: the source or a file of a sample does not exist.
        ValueError: the source is empty or entries are unusable; the message names file and line.
    """
    return draw_samples(source, n=n, seed=seed, measure=_decode).samples


def draw_samples(
    source: str | Path | None,
    *,
    n: int,
    seed: int,
    measure: Callable[[Sample], int],
    skip_bad: int = 0,
) -> Draw[Sample]:
    """Draw `n` usable samples from a source, in the source's order.

    Args:
        source: as for `load_samples`.
        n: number of samples; of a smaller source all are used, with a warning.
        seed: seed of the draw. If all samples are usable, it alone decides which are drawn.
        measure: returns the number of tokens of a sample; raises ValueError or OSError if it is
            unusable.
        skip_bad: maximum number of unusable samples to replace by others.

    Raises:
        FileNotFoundError: the source or a file of a sample does not exist.
        ValueError: the source is empty, or more samples are unusable; the message names file and
            line.
    """
    if n < 1:
        raise ValueError(f"number of calibration samples is {n}; it must be at least 1")
    if source is None or str(source) == "synthetic":
        from .synthetic import calibration_samples

        drawings = calibration_samples(n, seed)
        opened = Source("synthetic", n, drawings.__getitem__, lambda index: drawings[index].id)
    else:
        opened = open_source(source)
    return draw(opened, n, seed, measure=measure, skip_bad=skip_bad)


def _decode(sample: Sample) -> int:
    """Check that the images decode; the length does not matter."""
    image_digests([sample])
    return 0
