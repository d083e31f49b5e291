"""Questions and jobs of `answering_engines/jobs.py` as an engine's script reads them.

Imported in the environments of the engines, so that vlpress is not available.
"""

from __future__ import annotations

import base64
import io
import json
import sys
import traceback
from collections.abc import Callable
from importlib.metadata import version
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


def run_jobs(run: Callable[[dict[str, Any]], dict[str, Any]], packages: tuple[str, ...]) -> None:
    """Run the jobs of the file that the command line names, one after the other.

    Args:
        run: maps a job to its result; an error is a result too.
        packages: those whose versions are part of every result.
    """
    versions = {name: version(name) for name in packages}
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        try:
            result = run(job)
        except Exception as error:  # a refusal of any kind is a result
            traceback.print_exc()
            result = {"error": f"{type(error).__name__}: {error}"}
        write(job["out"], {"key": job["key"], "versions": versions, **result})
        print(f"{job['name']}: done", flush=True)
