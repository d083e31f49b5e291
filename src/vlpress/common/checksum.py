"""Seals on what is stored between runs: damage and edits are noticed before a result rests on them.

A sealed object carries the sha256 of the rest of itself. This is no protection against forgery.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "seal"
_LENGTH = 16  # hexadecimal digits; damage is found but for one case in 2**64


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with their seal.

    Args:
        values: JSON values with text as keys.
    """
    plain = json.loads(json.dumps(values, allow_nan=False))
    return {**plain, KEY: _digest(plain)}


def verify_checksum(values: object, where: str) -> dict[str, Any]:
    """The values without their seal.

    Args:
        values: what was read.
        where: what to call it in the error.

    Raises:
        ValueError: not an object, no checksum, a wrong checksum, or a number is not finite.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} is damaged: it holds no object; evaluate again")
    rest = {key: value for key, value in values.items() if key != KEY}
    try:
        digest = _digest(rest)
    except ValueError as error:
        raise ValueError(f"{where} holds a number that is not finite; evaluate again") from error
    if values.get(KEY) != digest:
        raise ValueError(f"{where} is damaged or was edited; evaluate again")
    return rest


def _digest(values: Mapping[str, Any]) -> str:
    """Of the values as JSON.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
    """
    text = json.dumps(values, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


def digest_bytes(data: bytes) -> str:
    """sha256 of a file's bytes."""
    return hashlib.sha256(data).hexdigest()
