"""Resolve options to models, processors, recipes and calibration samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..calib.samples.draw import draw_samples
from ..calib.samples.sample import Sample
from ..calib.samples.selection import Draw
from ..model.carried import CarriedTensors
from ..model.checkpoint import CheckpointReader
from ..model.config import ModelConfig
from ..model.loading import choose_device, choose_dtype
from ..model.processing.inputs import Prompt
from ..model.processing.processor import Processor
from ..model.qwen_vl import QwenVL
from .checkpoint.loading import open_model, resolve_folder
from .config import CalibrationOptions, ModelSettings
from .plan.part_targets import spell_out_parts
from .recipe.recipe import Recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A checkpoint folder and the settings to load it with; its weights are not loaded yet."""

    name: str
    folder: Path
    config: ModelConfig
    settings: ModelSettings

    @classmethod
    def find(cls, name: str | Path, settings: ModelSettings) -> Source:
        """Resolve a name and read its config; a hub id is downloaded here.

        Raises:
            FileNotFoundError: there is no such model.
            ValueError: the checkpoint is unusable, or this machine lacks the device.
        """
        choose_device(settings.device)
        folder = resolve_folder(str(name))
        return cls(str(name), folder, ModelConfig.from_folder(folder), settings)

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
            reduce=settings.reduce,
            adapter=not settings.no_adapter,
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
        """Device that the model is loaded on."""
        return choose_device(self.settings.device)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype that the model is loaded in."""
        return choose_dtype(self.settings.dtype, self.config, CheckpointReader(self.folder))

    @property
    def carried(self) -> CarriedTensors:
        """Tensors of the checkpoint that the model does not compute with."""
        return CarriedTensors.of(self.config, CheckpointReader(self.folder))


def resolve_recipe(
    name: str, calibration: CalibrationOptions, source: Source, tp: int | None = None
) -> Recipe:
    """Read a recipe for a model; options that are given take precedence over it.

    Args:
        name: a preset or a TOML file.
        calibration: number of samples.
        source: the model, and the seed of the draw.
        tp: tensor-parallel size at serving time.

    Raises:
        FileNotFoundError: neither a preset nor a file.
        ValueError: the recipe is unusable.
    """
    recipe = spell_out_parts(Recipe.resolve(name), source.config)
    section = recipe.calibration
    if calibration.calib_samples is not None:
        section = replace(section, samples=calibration.calib_samples)
    if source.settings.seed is not None:
        section = replace(section, seed=source.settings.seed)
    return replace(recipe, calibration=section, tp=recipe.tp if tp is None else tp)


def sample_processor(source: Source, recipe: Recipe) -> Processor:
    """Open the processor of calibration samples: that of the model, with the recipe's largest area.

    Raises:
        ValueError: the recipe's area is below the model's minimum, or differs from the one given
            as an option.
    """
    processor, area = source.processor(), recipe.vision_input.max_pixels
    if area is None:
        return processor
    given = source.settings.max_pixels
    if given is not None and given != area:
        raise ValueError(
            f"--max-pixels is {given}, vision_input.max_pixels of the recipe {area}; a checkpoint "
            "has one of them: leave the option out, or change the recipe"
        )
    if area < processor.min_pixels:
        raise ValueError(
            f"recipe: vision_input.max_pixels is {area}; allowed: at least {processor.min_pixels}, "
            f"the smallest area of {source.name}"
        )
    return processor.with_max_pixels(area)


def open_samples(
    recipe: Recipe, calibration: CalibrationOptions, processor: Processor
) -> Draw[Sample]:
    """Draw the calibration samples of a recipe; none if no step needs any.

    Each sample is encoded once, which needs no weights, to find those that the model cannot read.

    Raises:
        FileNotFoundError: a named file does not exist.
        ValueError: the source is empty, or more samples than allowed are unusable.
    """
    if not recipe.needs_samples:
        return Draw([], [])
    return draw_samples(
        calibration.calib,
        n=recipe.calibration.samples,
        seed=recipe.calibration.seed,
        measure=lambda sample: sample_length(sample, processor),
        skip_bad=calibration.skip_bad_samples,
    )


def sample_length(sample: Sample, processor: Processor) -> int:
    """Return the number of tokens of a sample, its answer included.

    Raises:
        FileNotFoundError: one of its files does not exist.
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
    """Encode samples with their answers.

    Raises:
        ValueError: a sample cannot be encoded; the message names it.
    """
    prompts = []
    for sample in samples:
        try:
            prompts.append(processor.encode(sample.messages, answer=sample.answer))
        except ValueError as error:
            raise ValueError(f"calibration sample {sample.id}: {error}") from None
    return prompts
