"""Checks of a verb's arguments before torch is imported, which takes seconds.

The Python API makes the same checks with the same functions, together with those that need torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..calib.samples.sources import check_source
from ..common.near_misses import did_you_mean, near_misses, near_paths
from ..common.options import Options, elements
from ..eval.config import AnswerOptions, BenchmarkOptions, RunOptions, SplitOptions
from ..eval.pixels.budgets import parse_budgets
from ..eval.pixels.config import PixelsOptions
from ..eval.planning.checks import check_question_file, check_questions, refuse_drawings
from ..eval.search.config import SearchOptions, check_limits, check_target
from ..model.config import ModelConfig
from ..model.processing.clips.decoding import check_video
from ..model.processing.images import open_image
from ..model.processing.media import find_video, local_path
from ..model.resolve import find_local_model
from ..quant.config import (
    BUILTIN_MODELS,
    DEPLOYMENT_FORMATS,
    FORMATS,
    CalibrationOptions,
    CheckpointArgument,
    ExportOptions,
    FormatOption,
    InputOptions,
    InspectOptions,
    PackedArgument,
    PromptOptions,
    PushOptions,
    RecipeOptions,
)
from ..quant.recipe.recipe import Recipe


def check_arguments(options: Options) -> None:
    """Check names, paths and files that a verb reads, as far as that needs no torch.

    Raises:
        FileNotFoundError: a model, checkpoint, recipe, benchmark, calibration file, image or video
            does not exist; the message suggests similar names.
        ValueError: a recipe, a model's config, an image or a video is unusable, or a name is
            unknown.
    """
    if isinstance(options, RunOptions | PixelsOptions):
        refuse_drawings(options.model, options.bench)
    if isinstance(options, PixelsOptions):
        parse_budgets(options.budgets)
    if isinstance(options, SearchOptions):
        check_limits(options)
        check_target(Path(options.out), overwrite=options.overwrite)
    if isinstance(options, RecipeOptions):
        Recipe.resolve(options.recipe)
    if isinstance(options, CalibrationOptions) and options.calib not in (None, "synthetic"):
        check_source(str(options.calib))
    if isinstance(options, AnswerOptions):
        check_questions(options.group(BenchmarkOptions), options.group(InputOptions))
    if isinstance(options, SplitOptions):
        check_question_file(Path(options.file))
    if isinstance(options, PromptOptions):
        _check_media(options)
    model = getattr(options, "model", None)
    if model is not None and str(model) not in BUILTIN_MODELS:
        _check_model(str(model))
    if isinstance(options, FormatOption):
        _check_format(options.format, FORMATS)
    if isinstance(options, ExportOptions):
        _check_format(options.format, (*FORMATS, *DEPLOYMENT_FORMATS))
    if isinstance(options, CheckpointArgument):
        _check_model(str(options.checkpoint))
    if isinstance(options, InspectOptions | PackedArgument | PushOptions):
        _check_folder(Path(options.checkpoint))


def _check_media(options: PromptOptions) -> None:
    """Decode the images of a prompt, and open its video."""
    for image in elements(options.image):
        try:
            open_image(image)
        except FileNotFoundError as error:
            raise _with_hint(error, image) from None
    if options.video is not None:
        try:
            video = find_video(options.video)
        except FileNotFoundError as error:
            raise _with_hint(error, options.video) from None
        check_video(video)


def _with_hint(error: FileNotFoundError, name: str | Path) -> FileNotFoundError:
    """Add similar names to the error of a missing file."""
    hint = did_you_mean(near_paths(local_path(str(name))))
    return FileNotFoundError(f"{error}{hint and f';{hint}'}")


def _check_format(name: str, formats: Sequence[str]) -> None:
    allowed = ("auto", *formats)
    if name not in allowed:
        hint = did_you_mean(near_misses(name, allowed))
        raise ValueError(f"format {name!r} is unknown;{hint} allowed: {', '.join(allowed)}")


def _check_model(name: str) -> None:
    """Check that a model exists, and its config if it is on this machine."""
    folder = find_local_model(name)
    if folder is not None:
        ModelConfig.from_folder(folder)


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        hint = did_you_mean(near_paths(folder, folders=True))
        raise FileNotFoundError(f"{folder}: no such folder;{hint} give a quantized checkpoint")
