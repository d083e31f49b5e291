"""Checksums of stored JSON objects: damage and manual edits are detected when they are read.

The checksum is a truncated sha256 of the object's other entries, stored under `KEY`. It does not
protect against forgery.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

KEY = "seal"
_LENGTH = 16  # hexadecimal digits: damage goes unnoticed with probability 2**-64


def with_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with their checksum added.

    Args:
        values: JSON object.

    Raises:
        TypeError: a value is not JSON.
        ValueError: a number is NaN or infinite.
    """
    # A round trip through JSON first, so that tuples and the like hash as they will be read.
    plain = json.loads(json.dumps(values, allow_nan=False))
    return {**plain, KEY: _digest(plain)}


def verify_checksum(
    values: object, where: str, *, remedy: str = "evaluate again"
) -> dict[str, Any]:
    """Return the values without their checksum.

    Args:
        values: parsed JSON.
        where: file, and line if it has several objects, for the error message.
        remedy: what the user should do, for the error message.

    Raises:
        ValueError: not an object, no checksum, a wrong checksum, or a number that is not finite.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} is damaged: not a JSON object; {remedy}")
    rest = {key: value for key, value in values.items() if key != KEY}
    try:
        digest = _digest(rest)
    except ValueError as error:
        raise ValueError(f"{where} holds a number that is not finite; {remedy}") from error
    if values.get(KEY) != digest:
        raise ValueError(f"{where} is damaged or was edited; {remedy}")
    return rest


def _digest(values: Mapping[str, Any]) -> str:
    """Hash the values as JSON with sorted keys.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot represent.
    """
    text = json.dumps(values, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


def digest_bytes(data: bytes) -> str:
    """Return the sha256 of some bytes, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def hash_json(value: object) -> str:
    """Return the sha256 of a JSON value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
