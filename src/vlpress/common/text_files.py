"""Text files of users: UTF-8 decoding, and JSON objects in lines."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable
from typing import Any

_FOREIGN_MARKS = (
    codecs.BOM_UTF32_LE,
    codecs.BOM_UTF32_BE,
    codecs.BOM_UTF16_LE,
    codecs.BOM_UTF16_BE,
)
_START = 200
"""Bytes to examine for UTF-16 without a byte order mark: about half of them are zero."""


def decode_utf8(raw: bytes, name: str) -> str:
    """Decode the bytes of a UTF-8 file, without its byte order mark.

    Args:
        raw: content of the file.
        name: name of the file for error messages.

    Raises:
        ValueError: another encoding; the message names the file and line, and the remedy.
    """
    start = raw[:_START]
    if raw.startswith(_FOREIGN_MARKS) or start.count(0) * 3 > len(start):
        raise ValueError(f"{name} is in UTF-16 or UTF-32; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name}:{line} is not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error


def read_object(line: str, *, parse_float: Callable[[str], float] = float) -> dict[str, Any]:
    """Parse a line that holds one JSON object.

    Args:
        line: line of a JSONL file.
        parse_float: converts the text of a number that is not an integer.

    Raises:
        ValueError: not an object, a duplicate key, or a number that is not valid JSON (NaN).
    """
    try:
        record = json.loads(
            line,
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=parse_float,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError("not JSON (lists or objects are nested too deeply)") from None
    if not isinstance(record, dict):
        raise ValueError(f"holds a {type(record).__name__}, not an object")
    return record


def _unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"duplicate key {key!r}; keep one")
        values[key] = value
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON; write null or remove the key")
