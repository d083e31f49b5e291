"""A copy of a checkpoint whose preprocessor scales images to another largest area.

Weights are hard links to the source's files where the file system allows it, else copies; packed
ones are unpacked. Only the image settings differ, in each spelling that the source has:
`max_pixels`, `size.longest_edge` or `size.max_pixels`, in preprocessor_config.json and in
`image_processor` of processor_config.json.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...common.atomic import write_json
from ...common.ordered_map import default_threads
from ...model.config import ModelConfig, read_checkpoint_json
from ...model.families import family_of
from ...model.processing.clips.settings import VIDEO_FILE
from ...model.processing.pixel_settings import EDGES, IMAGE_FILE, PixelSettings
from ...model.stored_files import is_packed, packed_path
from ...model.weight_files import INDEX_FILE, find_weights
from ..recipe.vision_input import MAX_PIXELS as RECORD_KEY
from .loading import is_quantized
from .model_card import CARD, base_of_card, write_model_card
from .safetensors_folder.shards import REPORT_FILE, copy_side_files

PROCESSOR_FILE, IMAGE_SECTION = "processor_config.json", "image_processor"
CONFIG_FILES = ("config.json", "quantize_config.json", "quant_config.json", REPORT_FILE)
"""Files of a checkpoint, as far as it has them, besides its weights and side files."""
MAX_PIXELS = "max_pixels"
"""Key in the configuration."""


def write_with_max_pixels(source: Path, out: Path, max_pixels: int) -> None:
    """Write a checkpoint with another largest area of an image into an existing empty folder.

    Args:
        source: folder of the checkpoint, float or quantized; only read.
        out: the folder.
        max_pixels: largest area of a scaled image in pixels.

    Raises:
        FileNotFoundError: the source has no weights or no preprocessor configuration.
        ValueError: a file of the source is unusable, or `max_pixels` is below its minimum.
    """
    config, weights = ModelConfig.from_folder(source), find_weights(source)
    for name in weights.files:
        _link_or_copy(source / name, out / name)
    copied = [*CONFIG_FILES, *([INDEX_FILE] if weights.weight_map else [])]
    copied += [CARD] * (not is_quantized(source))
    copy_side_files(source, out, (*copied, *family_of(config).side_files))
    change_max_pixels(out, config, max_pixels)
    if (out / REPORT_FILE).is_file():
        record = read_checkpoint_json(out / REPORT_FILE)
        if RECORD_KEY in record:  # of a recipe with an area of its own, which no longer holds
            write_json(out / REPORT_FILE, {**record, RECORD_KEY: max_pixels})
    if is_quantized(source):
        # A card of its own: the scores in the source's are of other images.
        write_model_card(out, base_of_card(source))


def change_max_pixels(folder: Path, config: ModelConfig, max_pixels: int) -> None:
    """Change the largest area of an image in the processor files of a new checkpoint.

    Args:
        folder: of the checkpoint, with the files of its source.
        config: of the model.
        max_pixels: see `write_with_max_pixels`.

    Raises:
        FileNotFoundError: there is no preprocessor configuration.
        ValueError: the configuration is unusable, or `max_pixels` is below its minimum.
    """
    before = PixelSettings.from_folder(folder, config.vision)
    for name, section in ((IMAGE_FILE, None), (PROCESSOR_FILE, IMAGE_SECTION)):
        if (folder / name).is_file():
            stored = read_checkpoint_json(folder / name)
            if section is None:
                write_json(folder / name, set_max_pixels(stored, max_pixels))
            elif isinstance(nested := stored.get(section), Mapping):
                write_json(folder / name, {**stored, section: set_max_pixels(nested, max_pixels)})
    written = PixelSettings.from_folder(folder, config.vision)
    if (written.min_pixels, written.max_pixels) != (before.min_pixels, max_pixels):
        raise ValueError(
            f"{folder}: its preprocessor configuration gives {written.min_pixels} to "
            f"{written.max_pixels} pixels after the change, {before.min_pixels} to {max_pixels} "
            "are wanted; take the file from the original checkpoint"
        )


def set_max_pixels(settings: Mapping[str, Any], max_pixels: int) -> dict[str, Any]:
    """Return settings of an image processor with another maximum, in all spellings they have.

    >>> set_max_pixels({"size": {"shortest_edge": 784, "longest_edge": 12845056}}, 802816)
    {'size': {'shortest_edge': 784, 'longest_edge': 802816}}
    """
    changed, size = dict(settings), settings.get("size")
    keys = [k for k in (EDGES[1], MAX_PIXELS) if k in size] if isinstance(size, Mapping) else []
    if isinstance(size, Mapping):
        changed["size"] = {**size, **dict.fromkeys(keys, max_pixels)}
    if not keys or settings.get(MAX_PIXELS) is not None:
        changed[MAX_PIXELS] = max_pixels
    return changed


def shares_video_settings(folder: Path) -> bool:
    """Whether engines take the settings of videos from those of images in a checkpoint folder."""
    path = folder / PROCESSOR_FILE
    nested = read_checkpoint_json(path).get("video_processor") if path.is_file() else None
    return nested is None and not (folder / VIDEO_FILE).is_file()


def shared_setting(name: object, max_pixels: int) -> str:
    """Return the warning about a checkpoint for which `shares_video_settings` holds."""
    return (
        f"{name} has one setting for images and videos: engines that read it from there scale "
        f"frames of videos to at most {max_pixels} pixels too"
    )


def _link_or_copy(source: Path, target: Path) -> None:
    if is_packed(source):
        from ...model.packed.writing import unpack_file  # imports the coder

        unpack_file(packed_path(source), target, threads=default_threads(), on_bytes=_ignore)
        return
    try:
        os.link(source.resolve(), target)  # resolved: a cache of the hub has symbolic links
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def _ignore(count: int) -> None:
    """Report no progress."""
