"""Thumbnails of the benchmark images, stored with an evaluation for its report.

A report is computed from a run folder alone, without the benchmark file. Each distinct image of a
task is stored once under `TASK/pictures/`, named by the digest of the pixels that the model saw;
the stored items refer to it by name.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from ...common.atomic import write_bytes
from ..tasks.files.image_store import StoredImage
from ..tasks.task import Task

FOLDER = "pictures"
LONGEST = 384  # pixels of the longer side; smaller images keep their size
QUALITY = 80  # of WebP: readable text at about 10 KB per image
_NAME = re.compile(r"[0-9a-f]{32}\.webp")


def store_thumbnails(task: Task, folder: Path) -> dict[str, list[str]]:
    """Write the thumbnails of a task that are not stored yet.

    Args:
        task: items with their images as shown to the model.
        folder: folder of the task in a run folder; must exist.

    Returns:
        File names of each item's images, by item id, in order of appearance.

    Raises:
        ValueError: an image does not decode.
    """
    store = folder / FOLDER
    store.mkdir(exist_ok=True)
    stored = {path.name for path in store.iterdir()}
    names: dict[str, list[str]] = {}
    for item in task.items:
        names[item.id] = []
        for image in item.images:
            name = f"{image.digest[:32]}.webp"
            if name not in stored:
                write_bytes(store / name, shrink(image))
                stored.add(name)
            names[item.id].append(name)
    return names


def shrink(image: StoredImage) -> bytes:
    """Encode an image as WebP, neither side longer than `LONGEST` pixels.

    Raises:
        ValueError: it does not decode.
    """
    pixels = image.open()
    pixels.thumbnail((LONGEST, LONGEST))
    buffer = io.BytesIO()
    pixels.save(buffer, format="WEBP", quality=QUALITY)
    return buffer.getvalue()


def read_thumbnail(folder: Path, name: object) -> tuple[bytes, tuple[int, int]] | None:
    """Read a thumbnail and its size.

    Args:
        folder: folder of the task.
        name: file name from a stored item. Run folders may come from other people, so only names
            of the form that `store_thumbnails` writes are opened.

    Returns:
        WebP bytes, and width and height in pixels; None if the file is missing or damaged.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return None
    path = folder / FOLDER / name
    if not path.is_file():
        return None
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as image:
            if max(image.size) > LONGEST:
                return None
            image.load()
            return data, image.size
    except (OSError, ValueError, SyntaxError):
        return None
