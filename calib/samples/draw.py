"""Calibration samples: drawing them from a source.

A sample is a conversation with its images and the answer, see `sample`. Sources are the built-in
drawings, and what `sources` opens: a JSONL file of `records`, a text file, a `datasets` dataset.
Images stay encoded until they are needed; each chosen one is decoded once here, so that a broken
file is reported with its line.
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
        n: samples wanted; a smaller source is used whole, with a warning.
        seed: of the draw.

    Raises:
        FileNotFoundError: a file that is named does not exist.
        ValueError: the source is empty or entries are unusable (file and line are named).
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
    """Draw `n` samples that can be used from a source, in the source's order.

    Args:
        source: as for `load_samples`.
        n: samples wanted; a smaller source is used whole, with a warning.
        seed: of the draw; it alone decides which samples are drawn if all can be used.
        measure: tokens of a sample's prompt; raises ValueError or OSError if it has none.
        skip_bad: most unusable samples that others take the place of.

    Raises:
        FileNotFoundError: a file that is named does not exist.
        ValueError: the source is empty, or more samples are unusable (file and line are named).
    """
    if n < 1:
        raise ValueError(f"{n} calibration samples were asked for; it must be at least 1")
    if source is None or str(source) == "synthetic":
        from .synthetic import calibration_samples

        drawings = calibration_samples(n, seed)
        found = Source("synthetic", n, drawings.__getitem__, lambda index: drawings[index].id)
    else:
        found = open_source(source)
    return draw(found, n, seed, measure=measure, skip_bad=skip_bad)


def _decode(sample: Sample) -> int:
    """Prove that the images decode; nothing is measured."""
    image_digests([sample])
    return 0
