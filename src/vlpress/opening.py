"""From what the user named to what the rooms work with: models, processors, tasks, samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .calib.sample import Sample, image_digest, image_digests
from .calib.samples import draw_samples
from .calib.selection import Draw
from .eval.askable import mark_unaskable
from .eval.extract import DEFAULT_PROFILE, rule_profile
from .eval.features import pictures
from .eval.perplexity import read_text
from .eval.tasks import find, open_task
from .eval.tasks.pictures import Picture
from .eval.tasks.pixels import DEFAULT as MODEL_PIXELS
from .eval.tasks.pixels import pixel_budget
from .eval.tasks.prompts import default_prompt_style, prompt_style
from .eval.tasks.task import Task
from .model.config import ModelConfig
from .model.inputs import Prompt
from .model.loading import choose_device
from .model.processing import Processor
from .model.qwen_vl import QwenVL
from .quant.loading import open_model, resolve_folder
from .quant.recipe import Recipe
from .requests import BUILTIN_BENCHES, Calibration, Questions, Settings

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


def check_questions(questions: Questions, settings: Settings) -> None:
    """Find what is wrong with the questions before a model is fetched for them.

    Raises:
        FileNotFoundError: a benchmark file does not exist.
        ValueError: a name, rule profile, prompt style or pixel budget is unknown, a benchmark is
            repeated, or the area of pictures is given twice.
    """
    benches = questions.benches or BUILTIN_BENCHES
    names = [find(spec, questions.data_root).name for spec in benches]
    if len(set(names)) < len(names):
        raise ValueError(f"--bench names {', '.join(names)}; give each benchmark once")
    if questions.prompt_style is not None:
        prompt_style(questions.prompt_style)
    rule_profile(questions.rules or DEFAULT_PROFILE)
    if pixel_budget(questions.pixels) != MODEL_PIXELS and (
        settings.min_pixels is not None or settings.max_pixels is not None
    ):
        raise ValueError(
            f"--pixels {questions.pixels} sets both bounds of a picture's area; give it, or "
            "--min-pixels and --max-pixels"
        )


def open_tasks(questions: Questions, source: Source, processor: Processor) -> list[Task]:
    """Open the benchmarks in the prompt layout of the model's family.

    Rows that this model cannot be asked are broken, see `eval.askable`; no weights are needed.

    Raises:
        FileNotFoundError: a benchmark file does not exist.
        ValueError: a name, rule profile or prompt style is unknown, or a file fails its checks.
    """
    style = questions.prompt_style or default_prompt_style(source.config.family)
    tasks = open_tasks_in(style, questions, source.settings)
    return [mark_unaskable(task, processor) for task in tasks]


def open_tasks_in(style: str, questions: Questions, settings: Settings) -> list[Task]:
    """Open the benchmarks in a named prompt layout.

    Raises:
        FileNotFoundError: a benchmark file does not exist.
        ValueError: a name, rule profile or prompt style is unknown, or a file fails its checks.
    """
    return [
        open_task(
            spec,
            limit=questions.limit,
            prompt_style=style,
            profile=questions.rules or DEFAULT_PROFILE,
            pixels=questions.pixels,
            blank=questions.blank_images,
            seed=settings.seed or 0,
            data_root=questions.data_root,
        )
        for spec in questions.benches or BUILTIN_BENCHES
    ]


def open_text(questions: Questions) -> str | None:
    """The text whose perplexity is wanted; None if none is.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is no text.
    """
    return None if questions.text is None else read_text(questions.text)


def refuse_leak(samples: Sequence[Sample], tasks: Sequence[Task]) -> None:
    """Refuse to calibrate on an image that the evaluation shows.

    Images are compared as calibration decodes them, and as the evaluation does.

    Raises:
        ValueError: an image is in both; the message names the item.
    """
    seen = image_digests(samples)
    if not seen:
        return
    checked: set[Picture] = set()
    for task in tasks:
        for item in task.items:
            for picture in pictures(item):
                if picture in checked:
                    continue
                if seen & {image_digest(picture.read()), image_digest(picture.open())}:
                    raise ValueError(
                        f"a calibration image is also an image of {task.name} item {item.id}; "
                        "take calibration samples that the evaluation does not use"
                    )
                checked.add(picture)
