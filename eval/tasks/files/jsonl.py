"""Custom benchmark files: one JSON object per line, or a CSV or TSV file (`tables`).

    {"image": "cat.png", "question": "What is this?", "answer": "a cat"}
    {"image": ["a.png", "b.png"], "question": "Which is larger?", "choices": ["left", "right"],
     "answer": "B", "category": "size"}

`image` is read by `model.processing.media`: a path relative to the file, a `file://` or `data:`
URL, base64, or an object with one of them; a list of those, or absent. `tasks.custom` documents
the image marks in questions, `matching.choices` the forms of options and their answer. `answer`
is a text or a number, or a list of accepted ones. `metric` is one of `METRICS`; the default is
choice if there are choices, else exact. `options`, and a key per letter (`A`, `B`, ...), are other
forms of `choices`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ....common.text_files import decode_utf8, read_object
from ....model.processing.media import read_image_bytes
from ..matching.choices import Options, Value, find_letter, read_options
from .image_store import AS_DISPLAYED, ImageStore
from .rows import BenchmarkTable, Faults, Index, Row
from .tables import LETTERS, SYNONYMS, Entry, read_table_entries, unread_columns

METRICS = ("exact", "contains", "choice", "relaxed")
KEYS = (
    "id",
    "image",
    "images",
    "question",
    "answer",
    "choices",
    "metric",
    "category",
    "group",
    "hint",
)
SUFFIXES = (".jsonl", ".csv", ".tsv")
_VIDEOS = ("video", "videos")


def read_questions(path: str | Path) -> BenchmarkTable:
    """Read a custom benchmark file; rows that cannot be used are among the table's faults.

    Args:
        path: a file with one of `SUFFIXES`.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not UTF-8, has no rows or lacks a column, or an id is repeated.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"benchmark file {path} does not exist")
    raw = path.read_bytes()
    store, digest = ImageStore(AS_DISPLAYED), hashlib.md5(raw)
    rows: list[Row] = []
    indices: set[Index] = set()
    faults: Faults = {}
    text, suffix = decode_utf8(raw, path.name), path.suffix.lower()
    is_table = suffix != ".jsonl"
    entries = read_table_entries(text, path, KEYS) if is_table else list(_parse_lines(text))
    for number, line, record in entries:
        row, fault = _read_row(record, number, line, path.parent, store)
        if row.index in indices:
            raise ValueError(f"{path.name}:{line} repeats id {row.index!r}; give each its own")
        indices.add(row.index)
        rows.append(row)
        if fault:
            faults[row.index] = fault
        for image in row.images:  # an image file may change without the JSONL file
            digest.update(image.digest.encode())
    if not rows:
        hint = "rows after the header" if is_table else "one JSON object per line"
        raise ValueError(f"{path.name} holds no questions; write {hint}")
    columns = (*KEYS, *(unread_columns(text, suffix, KEYS) if is_table else ()))
    return BenchmarkTable(path, digest.hexdigest(), columns, tuple(rows), faults)


def _parse_lines(text: str) -> Iterator[Entry]:
    """Yield the records of the lines that are not blank; a line's number is its row's."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, number, _parse_record(line)
            except (ValueError, RecursionError) as error:
                yield number, number, ValueError(*error.args)


def _read_row(
    record: Mapping[str, Any] | ValueError, number: int, line: int, folder: Path, store: ImageStore
) -> tuple[Row, str]:
    """Read a record; return an empty row and the reason if it cannot be used."""
    index = str(number)
    try:
        if isinstance(record, ValueError):
            raise record
        index = _plain("id", record.get("id")) or index
        cells = _cells(record)
        images = tuple(store.add(read_image_bytes(cell, folder)) for cell in _images(record))
        return Row(index, cells, images, line), ""
    except (ValueError, OSError, RecursionError) as error:
        return Row(index, {}, (), line), " ".join(str(error).split())


def _parse_record(line: str) -> Mapping[str, Any]:
    record: dict[str, Any] = {}
    for key, value in read_object(line).items():
        if key in _VIDEOS:
            raise ValueError(f"key {key!r}: videos are not evaluated; take the row out")
        name = SYNONYMS.get(key, key)
        if name not in KEYS and name not in LETTERS:
            raise ValueError(f"unknown key {key!r}; allowed are {', '.join(KEYS)}")
        if name in record:
            raise ValueError(f"key {key!r} is another name of {name!r}, which is there; keep one")
        record[name] = value
    return record


def _plain(key: str, value: object) -> str:
    """Convert a text or number to text; empty for None."""
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
    """Convert a record to the cells of a row; lists become JSON."""
    question = record.get("question")
    if not isinstance(question, str) or not question.strip():
        raise ValueError("question must be a text")
    options = read_options(_choices(record))
    hint = _plain("hint", record.get("hint"))
    if hint and not options:
        raise ValueError("a hint is shown with choices only; put it into the question")
    default = "choice" if options else "exact"
    metric = default if record.get("metric") is None else record["metric"]
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}; choose one of {', '.join(METRICS)}")
    answers = _answers(record.get("answer"), options, metric)
    optional = {
        "category": _plain("category", record.get("category")),
        "l2-category": _plain("group", record.get("group")),
        "hint": hint,
    }
    return {
        "question": question,
        "answers": json.dumps(answers, ensure_ascii=False),
        "metric": str(metric),
        **{letter: str(text) for letter, text in options.items()},
        **{key: value for key, value in optional.items() if value},
    }


def _choices(record: Mapping[str, Any]) -> object:
    """Return the options of a record, from `choices` or from a key per letter."""
    letters = {key: record[key] for key in sorted(record) if key in LETTERS}
    if letters and record.get("choices") is not None:
        raise ValueError(f"choices and the key {min(letters)!r} in one row; keep one of both forms")
    has_any = any(value not in (None, "") for value in letters.values())
    return letters if has_any else record.get("choices")


def _answers(value: object, options: Options, metric: str) -> list[str]:
    answers = _as_list(value)
    if not answers or not all(map(_is_answer, answers)):
        raise ValueError(
            f"answer is {_shorten(value)}; it must be a text, a finite number or a list of those"
        )
    if metric != "choice":
        return [text for answer in answers for text in _texts(answer)]
    if not options:
        raise ValueError("metric choice needs choices; give them or another metric")
    return list(dict.fromkeys(find_letter(answer, options) for answer in answers))


def _is_answer(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    return bool(value.strip()) if isinstance(value, str) else math.isfinite(value)


def _texts(answer: Value) -> list[str]:
    """Return the accepted spellings of an answer: an integral float such as 12.0 also as 12."""
    if isinstance(answer, float) and answer.is_integer():
        return [str(answer), str(int(answer))]
    return [str(answer)]


def _images(record: Mapping[str, Any]) -> list[Any]:
    """Return the image cells of a row, from either key."""
    lists = [_as_list(record[key]) for key in ("image", "images") if record.get(key) is not None]
    lists = [cells for cells in lists if cells]
    if len(lists) == 2 and lists[0] != lists[1]:
        raise ValueError("image and images hold different images; keep one of the keys")
    return lists[0] if lists else []


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _shorten(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."
