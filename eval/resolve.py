"""Resolve benchmark names and options to tasks."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ..calib.samples.sample import Sample, image_digest, image_digests
from ..common.options import elements
from ..model.processing.processor import Processor
from ..quant.config import ModelSettings
from ..quant.resolve import Source
from .answering.local_reasoning import choose_rule
from .config import BUILTIN_BENCHES, BenchmarkOptions, QuestionOptions
from .fidelity.perplexity import read_text
from .tasks import open_task
from .tasks.askable import mark_unaskable
from .tasks.coordinates import default_coordinates
from .tasks.extract import DEFAULT_PROFILE
from .tasks.files.image_store import StoredImage
from .tasks.generated.answer_limits import find_limit, parse_limits
from .tasks.prompts import default_prompt_style
from .tasks.registry import find_benchmark, near_miss
from .tasks.resolution import check_budget_of_model
from .tasks.task import Task

logger = logging.getLogger(__name__)


def open_tasks(questions: QuestionOptions, source: Source, processor: Processor) -> list[Task]:
    """Open the benchmarks in the prompt layout of the model's family.

    Reasoning is separated by the rule of the model's chat template, unless another is given. Rows
    that do not fit the model are marked as broken (`eval.tasks.askable`).

    Raises:
        FileNotFoundError: a benchmark file does not exist.
        ValueError: a name, rule profile or prompt style is unknown, the pixel budget is of another
            family, the tokenizer hides the end of a reasoning, or a file fails its checks.
    """
    check_budget_of_model(questions.pixels, source.config.vision.pixel_factor)
    style = questions.prompt_style or default_prompt_style(source.config.family)
    rule = questions.reasoning or choose_rule(processor)
    places = questions.coordinates or default_coordinates(source.config.family)
    tasks = open_tasks_in(style, rule, places, questions, source.settings)
    return [mark_unaskable(task, processor) for task in tasks]


def open_tasks_in(
    style: str,
    rule: str,
    places: str | None,
    questions: QuestionOptions,
    settings: ModelSettings,
) -> list[Task]:
    """Open the benchmarks in a named prompt layout.

    Args:
        style: a name of `prompts.STYLES`.
        rule: a name of `reasoning.RULES`.
        places: a name of `coordinates.COORDINATES`; None only without benchmarks of places.
        questions: the benchmarks.
        settings: the model's settings.

    Raises:
        FileNotFoundError: a benchmark file does not exist.
        ValueError: a name, rule profile or prompt style is unknown, or a file fails its checks.
    """
    specs = questions.bench or BUILTIN_BENCHES
    found = [find_benchmark(spec, questions.data_root) for spec in specs]
    for warning in filter(None, map(near_miss, found)):
        logger.warning("%s", warning)
    limits = parse_limits(elements(questions.max_new_tokens))
    return [
        open_task(
            spec,
            limit=questions.limit,
            prompt_style=style,
            profile=questions.rules or DEFAULT_PROFILE,
            reasoning=rule,
            coordinates=places,
            max_new_tokens=find_limit(limits, benchmark),
            pixels=questions.pixels,
            blank=questions.blank_images,
            seed=settings.seed or 0,
            data_root=questions.data_root,
        )
        for spec, benchmark in zip(specs, found, strict=True)
    ]


def open_text(questions: BenchmarkOptions) -> str | None:
    """Read the text for the perplexity; None without `--text`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is not a text file.
    """
    return None if questions.text is None else read_text(questions.text)


def refuse_leak(samples: Sequence[Sample], tasks: Sequence[Task]) -> None:
    """Refuse calibration images that are also evaluation images.

    Images are compared in the decoding of calibration and in that of the evaluation.

    Raises:
        ValueError: an image is in both; the message names the item.
    """
    seen = image_digests(samples)
    if not seen:
        return
    checked: set[StoredImage] = set()
    for task in tasks:
        for item in task.items:
            for image in item.images:
                if image in checked:
                    continue
                if any(image_digest(variant.open()) in seen for variant in image.variants()):
                    raise ValueError(
                        f"a calibration image is also an image of {task.name} item {item.id}; "
                        "take calibration samples that the evaluation does not use"
                    )
                checked.add(image)
