"""Reading JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Read a UTF-8 file that holds one JSON object.

    Args:
        path: file to read.
        remedy: what the user should do if it is damaged, for the error message.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not valid JSON, or not an object; the message names the file.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: holds a {type(value).__name__}, not an object; {remedy}")
    return value
