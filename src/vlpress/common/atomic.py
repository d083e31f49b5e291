"""Atomic file writes: a file appears complete or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path

PART = ".part"  # ending of a file that is being written


def write_json(path: Path, value: object) -> None:
    """Write JSON whole or not at all.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise ValueError(f"{path} cannot be written: a number in it is not finite") from error
    write_text(path, text)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = path.with_name(path.name + PART)
    temporary.write_text(text, "utf-8", errors="backslashreplace")
    os.replace(temporary, path)
