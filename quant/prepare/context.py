"""What a preparation may use besides the checkpoint: samples, settings, the rest of the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...calib.samples.sample import Sample
from ...common.progress import Update
from ...model.processing.inputs import Prompt
from ..config import ModelSettings
from ..recipe.recipe import Recipe
from ..resolve import Source, encode_samples, sample_processor


def no_progress(done: int, total: int, detail: str) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Context:
    """Surroundings of a preparation."""

    recipe: Recipe
    """The whole recipe; its steps show how the result will be quantized."""
    samples: Sequence[Sample] = ()
    """Calibration samples with their answers; empty if no step of the recipe needs any."""
    settings: ModelSettings = field(default_factory=ModelSettings)
    """Device, dtype, areas of images."""
    update: Update = no_progress
    """Shows progress."""

    @property
    def seed(self) -> int:
        """Seed of random choices: that of the calibration samples."""
        return self.recipe.calibration.seed

    def prompts(self, source: Path) -> list[Prompt]:
        """Encode the samples as a checkpoint's own tokenizer and processor do.

        Raises:
            ValueError: a sample cannot be encoded.
        """
        of_folder = Source.find(source, self.settings)
        return encode_samples(self.samples, sample_processor(of_folder, self.recipe))
