"""Small copies of the pictures that were asked about, kept so that a report can show them.

A report is made from a run folder alone, without the benchmark file. Each distinct picture of a
task is therefore stored once under `TASK/pictures/`, named by the digest of what was shown, and
the stored items name theirs.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from PIL import Image

from ...common.atomic import write_bytes
from ..answering.vision_features import pictures
from ..tasks.files.image_store import Picture
from ..tasks.task import Task

FOLDER = "pictures"
LONGEST = 384  # pixels of the longer side; smaller pictures keep their size
QUALITY = 80  # of WebP: readable text at some 10 KB a picture
_NAME = re.compile(r"[0-9a-f]{32}\.webp")


def store_pictures(task: Task, folder: Path) -> dict[str, list[str]]:
    """Write what is not there yet of a task's pictures.

    Args:
        task: its items' pictures, as they are shown to the model.
        folder: the task's, in a run folder; must exist.

    Returns:
        The file names of each item's pictures, by item id, in order of appearance.

    Raises:
        ValueError: a picture does not decode.
    """
    store = folder / FOLDER
    store.mkdir(exist_ok=True)
    known = {path.name for path in store.iterdir()}
    names: dict[str, list[str]] = {}
    for item in task.items:
        names[item.id] = []
        for picture in pictures(item):
            name = f"{picture.digest[:32]}.webp"
            if name not in known:
                write_bytes(store / name, shrink(picture))
                known.add(name)
            names[item.id].append(name)
    return names


def shrink(picture: Picture) -> bytes:
    """A picture as WebP, no side longer than `LONGEST` pixels.

    Raises:
        ValueError: it does not decode.
    """
    image = picture.open()
    image.thumbnail((LONGEST, LONGEST))
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=QUALITY)
    return buffer.getvalue()


def read_picture(folder: Path, name: object) -> tuple[bytes, tuple[int, int]] | None:
    """A stored picture and its width and height in pixels; None if it is missing or damaged.

    Args:
        folder: the task's.
        name: as an item gives it. Run folders travel between people: a name that is not of the
            form that `store_pictures` writes is not opened.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return None
    path = folder / FOLDER / name
    if not path.is_file():
        return None
    data = path.read_bytes()
    try:
        with Image.open(io.BytesIO(data), formats=("WEBP",)) as picture:
            if max(picture.size) > LONGEST:
                return None
            picture.load()
            return data, picture.size
    except (OSError, ValueError, SyntaxError):
        return None
