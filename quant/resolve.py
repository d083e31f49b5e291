"""From what the user named to what the rooms work with: models, processors, tasks, samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..calib.samples.draw import draw_samples
from ..calib.samples.sample import Sample
from ..calib.samples.selection import Draw
from ..model.config import ModelConfig
from ..model.loading import choose_device
from ..model.processing.inputs import Prompt
from ..model.processing.processor import Processor
from ..model.qwen_vl import QwenVL
from .checkpoint.loading import open_model, resolve_folder
from .config import Calibration, Settings
from .recipe.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A model that was named and found, not yet loaded."""

    name: str
    folder: Path
    config: ModelConfig
    settings: Settings

    @classmethod
    def find(cls, name: str, settings: Settings) -> Source:
        """Resolve a name and read its config; a hub id is fetched here.

        Raises:
            FileNotFoundError: there is no such model.
            ValueError: the checkpoint is unusable, or this machine lacks the device.
        """
        choose_device(settings.device)
        folder = resolve_folder(name)
        return cls(name, folder, ModelConfig.from_folder(folder), settings)

    def load(self) -> QwenVL:
        """Load the model, quantized or not, on the device and in the dtype of the settings."""
        settings = self.settings
        return open_model(
            self.folder,
            device=settings.device,
            dtype=settings.dtype,
            activations=settings.activations,
            head=settings.head,
            kv_cache=settings.kv_cache,
        )

    def processor(self) -> Processor:
        """Open the processor with the pixel bounds of the settings."""
        return Processor.from_folder(
            self.folder,
            min_pixels=self.settings.min_pixels,
            max_pixels=self.settings.max_pixels,
        )

    @property
    def device(self) -> torch.device:
        """Where the model will be loaded."""
        return choose_device(self.settings.device)


def resolve_recipe(
    name: str, calibration: Calibration, settings: Settings, tp: int | None = None
) -> Recipe:
    """Read a recipe and put what the command line says into it.

    Raises:
        FileNotFoundError: neither a preset nor a file.
        ValueError: the recipe is unusable.
    """
    recipe = Recipe.resolve(name)
    asked = recipe.calibration
    if calibration.samples is not None:
        asked = replace(asked, samples=calibration.samples)
    if settings.seed is not None:
        asked = replace(asked, seed=settings.seed)
    return replace(recipe, calibration=asked, tp=recipe.tp if tp is None else tp)


def open_samples(recipe: Recipe, calibration: Calibration, processor: Processor) -> Draw[Sample]:
    """Draw the calibration samples of a recipe; none if no step looks at activations.

    Each is encoded once to find those that the model cannot be given, without its weights.

    Raises:
        FileNotFoundError: a file that is named does not exist.
        ValueError: the source is empty, or more samples than allowed cannot be used.
    """
    if not recipe.needs_calibration:
        return Draw([], [])
    return draw_samples(
        calibration.source,
        n=recipe.calibration.samples,
        seed=recipe.calibration.seed,
        measure=lambda sample: sample_length(sample, processor),
        skip_bad=calibration.skip_bad,
    )


def sample_length(sample: Sample, processor: Processor) -> int:
    """Tokens of a sample with its answer.

    Raises:
        FileNotFoundError: a file of it does not exist.
        ValueError: it cannot be encoded, or is longer than the model's context.
    """
    tokens = len(processor.encode(sample.messages, answer=sample.answer))
    context = processor.config.text.max_position_embeddings
    if tokens > context:
        raise ValueError(
            f"its {tokens} tokens are more than the model's context of {context}; shorten it, or "
            "take smaller or fewer images"
        )
    return tokens


def encode_samples(samples: Sequence[Sample], processor: Processor) -> list[Prompt]:
    """Tokenize samples with their answers.

    Raises:
        ValueError: a sample does not encode; the message names it.
    """
    prompts = []
    for sample in samples:
        try:
            prompts.append(processor.encode(sample.messages, answer=sample.answer))
        except ValueError as error:
            raise ValueError(f"calibration sample {sample.id}: {error}") from None
    return prompts
