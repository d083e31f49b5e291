"""Questions and jobs of `answering_engines/jobs.py` as an engine's script reads them.

Imported in the environments of the engines, so that vlpress is not available.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

Part = tuple[str, str]
"""`text` and the text, or `image` and the bytes of its file in base64."""


def read(path: str) -> dict[str, list[Part]]:
    """Parts of each question by name."""
    rows: dict[str, list[Part]] = json.loads(Path(path).read_text(encoding="utf-8"))
    return rows


def open_image(data: str) -> Image.Image:
    """Decode an image to RGB."""
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def write(path: str, result: dict[str, Any]) -> None:
    """Write a job's result; the file appears when it is complete."""
    part = Path(path).with_suffix(".part")
    part.write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")
    part.replace(path)
