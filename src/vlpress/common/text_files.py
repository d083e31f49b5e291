"""Text that users write: files in UTF-8, and lines that hold one JSON object each."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable
from typing import Any

_MARKED = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_START = 200  # bytes that tell UTF-16 without a mark: every other one is zero


def decode_utf8(raw: bytes, name: str) -> str:
    """Text of a file's bytes; a byte order mark is left out.

    Args:
        raw: the whole file.
        name: of the file, for messages.

    Raises:
        ValueError: they are in another encoding; the message says what to do.
    """
    start = raw[:_START]
    if raw.startswith(_MARKED) or start.count(0) * 3 > len(start):
        raise ValueError(f"{name} is in UTF-16 or UTF-32; save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{name}:{line} is not UTF-8 ({error.reason}); save the file as UTF-8"
        ) from error


def read_object(line: str, *, parse_float: Callable[[str], float] = float) -> dict[str, Any]:
    """The JSON object that a line holds.

    Args:
        line: of a JSONL file.
        parse_float: makes a number of the text of one that is no integer.

    Raises:
        ValueError: it holds something else, a key twice, or a number that JSON does not have.
    """
    try:
        record = json.loads(
            line,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=parse_float,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from None
    except RecursionError:
        raise ValueError("not JSON (too deep a recursion of lists or objects)") from None
    if not isinstance(record, dict):
        raise ValueError(f"it holds a {type(record).__name__}, not an object")
    return record


def _object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} is there twice; keep one")
        found[key] = value
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON; write null or leave the key out")
