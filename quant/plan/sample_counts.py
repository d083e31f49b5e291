"""Numbers of calibration samples and tokens, which memory and time depend on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...calib.samples.sample import has_images
from ...common.environment import versions
from ...common.result_cache import cached, digest_code, digest_files
from ..config import CalibrationOptions
from ..job import calibration_warnings
from ..recipe.recipe import Recipe
from ..resolve import Source, open_samples, sample_processor

SIDE_FILES = ("*.json", "*.txt", "*.jinja")
CODE = ("calib/samples", "model/processing", "synthetic")
"""Packages that decide which samples are drawn, and their lengths."""


@dataclass(frozen=True)
class SampleCounts:
    """Calibration samples without their content."""

    tokens: list[int]
    """Length of each sample."""
    with_images: int
    """Number of samples with images or videos."""
    warnings: list[str]
    """Reasons for which the samples may not suit the model."""


def count_samples(recipe: Recipe, calibration: CalibrationOptions, source: Source) -> SampleCounts:
    """Count the samples that a recipe would draw.

    The counts of the built-in drawings are cached: drawing and encoding them needs the tokenizer,
    whose library takes a second to import. Samples in files are always read.

    Raises:
        FileNotFoundError: a named file does not exist.
        ValueError: the source is empty, or more samples than allowed are unusable.
    """

    def count() -> dict[str, Any]:
        drawn = open_samples(recipe, calibration, sample_processor(source, recipe))
        return asdict(
            SampleCounts(
                drawn.tokens,
                sum(map(has_images, drawn.samples)),
                calibration_warnings(source.name, drawn, calibration),
            )
        )

    if not recipe.needs_samples or calibration.calib not in (None, "synthetic"):
        return SampleCounts(**count())
    return SampleCounts(**cached("samples", _key(recipe, calibration, source), count).value)


def _key(recipe: Recipe, calibration: CalibrationOptions, source: Source) -> dict[str, Any]:
    folder = Path(source.folder)
    return {
        "model": [source.name, digest_files([f for p in SIDE_FILES for f in folder.glob(p)])],
        "samples": [recipe.calibration.samples, recipe.calibration.seed],
        "skip_bad_samples": calibration.skip_bad_samples,
        "pixels": [source.settings.min_pixels, source.settings.max_pixels],
        "max_pixels": recipe.vision_input.max_pixels,
        "code": digest_code(*CODE),
        "versions": versions(),
    }
