"""One's own questions as a file: one JSON object per line.

    {"image": "cat.png", "question": "What is this?", "answer": "a cat"}
    {"image": ["a.png", "b.png"], "question": "Which is larger?", "choices": ["left", "right"],
     "answer": "B", "category": "size"}

`image` is a path relative to the file, a `data:` URL or base64, a list of those, or absent; where
`<image 1>` stands in the question is where the first one is shown. `answer` is a text or a number,
or a list of accepted ones; with `choices` it is a letter. `metric` is one of `METRICS`, by default
choice where there are choices and exact elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .pictures import Picture, PictureStore
from .table import Faults, Index, Row, Table

METRICS = ("exact", "contains", "choice", "relaxed")
_KEYS = ("id", "image", "images", "question", "answer", "choices", "metric", "category", "group")
_PATH_LENGTH = 1024  # the system refuses to look longer names up


def read_jsonl(path: str | Path) -> Table:
    """Read such a file; a line that cannot be used is among the table's faults.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, no line at all, or a repeated id.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"benchmark file {path} does not exist")
    raw = path.read_bytes()
    try:
        lines = raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not UTF-8 ({error.reason}); save it as UTF-8") from error
    store, digest = PictureStore(), hashlib.md5(raw)
    rows: list[Row] = []
    known: set[Index] = set()
    faults: Faults = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row, fault = _read_line(line, number, path.parent, store)
        if row.index in known:
            raise ValueError(f"{path.name}:{number} repeats id {row.index!r}; give each its own")
        known.add(row.index)
        rows.append(row)
        if fault:
            faults[row.index] = fault
        for picture in row.images:  # a picture beside the file may change without it
            digest.update(picture.digest.encode())
    if not rows:
        raise ValueError(f"{path.name} holds no questions; write one JSON object per line")
    return Table(path, digest.hexdigest(), _KEYS, tuple(rows), faults)


def _read_line(line: str, number: int, folder: Path, store: PictureStore) -> tuple[Row, str]:
    index: Index = number
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError(f"it holds a {type(record).__name__}, not an object")
        index = str(record.get("id", number))
        if unknown := [key for key in record if key not in _KEYS]:
            raise ValueError(f"unknown key {unknown[0]!r}; allowed are {', '.join(_KEYS)}")
        values = _values(record)
        return Row(index, values, _pictures(record, folder, store)), ""
    except json.JSONDecodeError as error:
        return Row(str(index), {}, ()), f"line {number} is not JSON ({error.msg})"
    except (ValueError, RecursionError) as error:
        return Row(str(index), {}, ()), f"line {number}: {error}"


def _values(record: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a row; lists as JSON."""
    question, answer = record.get("question"), record.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise ValueError("question must be a text")
    answers = answer if isinstance(answer, list) else [answer]
    if not answers or not all(_is_answer(a) for a in answers):
        raise ValueError("answer must be a text, a number or a list of those")
    choices = _choices(record.get("choices"))
    metric = record.get("metric", "choice" if choices else "exact")
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; choose one of {', '.join(METRICS)}")
    if metric == "choice" and [str(a) for a in answers if str(a) not in choices]:
        raise ValueError(f"answer is {answer!r}; with metric choice it is a letter of choices")
    cells = {"category": record.get("category"), "l2-category": record.get("group")}
    return {
        "question": question,
        "answers": json.dumps([str(a) for a in answers], ensure_ascii=False),
        "metric": str(metric),
        **choices,
        **{key: str(value) for key, value in cells.items() if value not in (None, "")},
    }


def _is_answer(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return bool(str(value).strip())


def _choices(value: object) -> dict[str, str]:
    """Options by letter, from a list or a mapping."""
    if value is None:
        return {}
    if isinstance(value, list):
        value = dict(zip(string.ascii_uppercase, value, strict=False))
    letters = set(string.ascii_uppercase)
    if not isinstance(value, dict) or not value or not set(value) <= letters:
        raise ValueError("choices must be a list of texts or an object of letter and text")
    return {letter: str(value[letter]) for letter in sorted(value)}


def _pictures(record: Mapping[str, Any], folder: Path, store: PictureStore) -> tuple[Picture, ...]:
    cells = record.get("images", record.get("image"))
    listed = cells if isinstance(cells, list) else [] if cells is None else [cells]
    return tuple(store.add(_read_picture(cell, folder)) for cell in listed)


def _read_picture(cell: object, folder: Path) -> bytes:
    if not isinstance(cell, str) or not cell:
        raise ValueError("image must be a path, a data: URL or base64")
    if cell.startswith("data:"):
        cell = cell.partition(",")[2]
    elif len(cell) <= _PATH_LENGTH and "\0" not in cell and (folder / cell).is_file():
        return (folder / cell).read_bytes()
    try:
        return base64.b64decode(cell, validate=True)
    except (binascii.Error, ValueError):
        shown = cell if len(cell) <= 60 else cell[:57] + "..."
        raise ValueError(f"image {shown!r} is neither a file nor base64") from None
