"""One's own questions as a file: one JSON object per line.

    {"image": "cat.png", "question": "What is this?", "answer": "a cat"}
    {"image": ["a.png", "b.png"], "question": "Which is larger?", "choices": ["left", "right"],
     "answer": "B", "category": "size"}

`image` is read by `model.processing.media`: a path relative to the file, a `file://` or `data:`
URL, base64, or an object with one of them; a list of those, or absent. `tasks.custom` documents
where marks in the question place the images, `tasks.choices` how options and their answer may be
written. `answer` is a text or a number, or a list of accepted ones. `metric` is one of `METRICS`,
by default choice if there are choices, else exact.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....common.text_files import decode_utf8, read_object
from ....model.processing.media import read_image_bytes
from ..choices import Options, Value, letter_of, read_options
from .image_store import AS_DISPLAYED, PictureStore
from .table import Faults, Index, Row, Table

METRICS = ("exact", "contains", "choice", "relaxed")
_KEYS = ("id", "image", "images", "question", "answer", "choices", "metric", "category", "group")
_VIDEOS = ("video", "videos")


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
    store, digest = PictureStore(AS_DISPLAYED), hashlib.md5(raw)
    rows: list[Row] = []
    known: set[Index] = set()
    faults: Faults = {}
    for number, line in enumerate(decode_utf8(raw, path.name).split("\n"), start=1):
        if not line.strip():
            continue
        row, fault = _read_line(line, number, path.parent, store)
        if row.index in known:
            raise ValueError(f"{path.name}:{number} repeats id {row.index!r}; give each its own")
        known.add(row.index)
        rows.append(row)
        if fault:
            faults[row.index] = fault
        for picture in row.images:  # an image file may change without the JSONL file
            digest.update(picture.digest.encode())
    if not rows:
        raise ValueError(f"{path.name} holds no questions; write one JSON object per line")
    return Table(path, digest.hexdigest(), _KEYS, tuple(rows), faults)


def _read_line(line: str, number: int, folder: Path, store: PictureStore) -> tuple[Row, str]:
    """The row of a line, empty if the line cannot be used, and why it cannot."""
    index = str(number)
    try:
        record = _record(line)
        index = _id(record.get("id")) or index
        cells = _cells(record)
        images = tuple(store.add(read_image_bytes(cell, folder)) for cell in _images(record))
        return Row(index, cells, images, number), ""
    except (ValueError, OSError, RecursionError) as error:
        return Row(index, {}, (), number), " ".join(str(error).split())


def _record(line: str) -> Mapping[str, Any]:
    record = read_object(line)
    for key in record:
        if key in _VIDEOS:
            raise ValueError(f"key {key!r}: videos are not evaluated; take the row out")
        if key not in _KEYS:
            raise ValueError(f"unknown key {key!r}; allowed are {', '.join(_KEYS)}")
    return record


def _id(value: object) -> str:
    return _plain("id", value)


def _plain(key: str, value: object) -> str:
    """A text or number as text; empty for None."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{key} must be a text or a number")
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key} holds half a surrogate pair") from None
    return text


def _cells(record: Mapping[str, Any]) -> dict[str, str]:
    """The cells of a row; lists as JSON."""
    question = record.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ValueError("question must be a text")
    options = read_options(record.get("choices"))
    default = "choice" if options else "exact"
    metric = default if record.get("metric") is None else record["metric"]
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; choose one of {', '.join(METRICS)}")
    answers = _answers(record.get("answer"), options, metric)
    optional = {
        "category": _plain("category", record.get("category")),
        "l2-category": _plain("group", record.get("group")),
    }
    return {
        "question": question,
        "answers": json.dumps(answers, ensure_ascii=False),
        "metric": str(metric),
        **{letter: str(text) for letter, text in options.items()},
        **{key: value for key, value in optional.items() if value},
    }


def _answers(value: object, options: Options, metric: str) -> list[str]:
    answers: list[Any] = value if isinstance(value, list) else [value]
    if not answers or not all(map(_is_answer, answers)):
        raise ValueError(
            f"answer is {_shown(value)}; it must be a text, a finite number or a list of those"
        )
    if metric != "choice":
        return [text for answer in answers for text in _texts(answer)]
    if not options:
        raise ValueError("metric choice needs choices; give them or another metric")
    return list(dict.fromkeys(letter_of(answer, options) for answer in answers))


def _is_answer(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return bool(value.strip()) if isinstance(value, str) else math.isfinite(value)


def _texts(answer: Value) -> list[str]:
    """How an answer may be written: a whole number that JSON holds as 12.0 also as 12."""
    if isinstance(answer, float) and answer.is_integer():
        return [str(answer), str(int(answer))]
    return [str(answer)]


def _images(record: Mapping[str, Any]) -> list[Any]:
    """What stands for the images of a row, under either key."""
    given = [_listed(record[key]) for key in ("image", "images") if record.get(key) is not None]
    given = [cells for cells in given if cells]
    if len(given) == 2 and given[0] != given[1]:
        raise ValueError("image and images hold different images; keep one of the keys")
    return given[0] if given else []


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
