"""Keys and values: key information extraction, and answers with a place."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from .texts import text_score

_FENCE = re.compile(r"```(?:python|json)?\n(.*?)\n```", re.DOTALL | re.IGNORECASE)
_PAIR = re.compile(r"[\"']?([\w\s]+)[\"']?\s*[:=]\s*[\"']?([^\n,\"'{}]+)[\"']?")
_BLANKS = re.compile(r"\s{2,}")
_QUAD = re.compile(r"[(\[]\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*,\s*(\d{1,9})\s*[)\]]")
_LARGEST = 1000  # coordinate
_UNREADABLE = (ValueError, SyntaxError, TypeError, MemoryError, RecursionError)


def read_pairs(prediction: str) -> dict[str, str]:
    """Read keys and values: JSON, a Python literal, or else `key: value` anywhere.

    Example:
        >>> read_pairs('{"total": 12}'), read_pairs("total = 12, tax: 3")
        ({'total': '12'}, {'total': '12', 'tax': '3'})
    """
    fenced = _FENCE.search(prediction)
    content = fenced[1] if fenced else prediction.strip()
    values: Any = _parse(content)
    if values is None:
        # Keys may contain white space, and long runs of it would take cubic time.
        content = _BLANKS.sub(lambda run: "\n" if "\n" in run[0] else " ", content)
        values = _search_pairs(content)
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        return {}
    return {key.strip(): str(value).strip() for key, value in values.items()}


def _search_pairs(content: str) -> dict[str, str]:
    """Return all `key: value` in a text; the search ends at the last separator."""
    values: dict[str, str] = {}
    last, place = max(map(content.rfind, ":=")), 0
    while place <= last and (match := _PAIR.search(content, place)):
        values[match[1].strip()] = match[2].strip()
        place = match.end()
    return values


def _parse(content: str) -> Any:
    """Return the value of JSON or of a literal; None if it is neither.

    A literal that is no dictionary counts as one without pairs, because it has none to search for.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(content)
    except _UNREADABLE:
        return None
    return value if isinstance(value, dict) else {}


def alternatives(answer: object) -> dict[str, list[str]]:
    """Return the accepted values of each key of a gold answer, a dictionary or the text of one.

    Raises:
        ValueError: the answer is not a dictionary.
    """
    if isinstance(answer, dict):
        return {str(key): [_fold(value) for value in values] for key, values in answer.items()}
    text = str(answer).strip('"')
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        try:
            parsed = ast.literal_eval(text)
            parsed = ast.literal_eval(parsed) if isinstance(parsed, str) else parsed
        except _UNREADABLE:
            parsed = None
    if not isinstance(parsed, dict):
        raise ValueError(f"its answer {text[:40]!r} is no dictionary")
    as_lists = {k: v if isinstance(v, list) else [v] for k, v in parsed.items()}
    return {str(key): [_fold(value) for value in values] for key, values in as_lists.items()}


def _fold(value: object) -> str:
    return str(value).lower().strip().replace("\n", " ").replace(" ", "")


def pairs_score(answers: Sequence[object], prediction: str) -> float:
    """Share of the keys, of answer and prediction together, whose value is right."""
    golds = alternatives(answers[0])
    values = read_pairs(prediction)
    keys = golds.keys() | values.keys()
    if not keys:
        return 0.0
    return fmean(key in values and _fold(values[key]) in golds.get(key, ()) for key in keys)


def answer_with_box_score(answers: Sequence[object], box: Sequence[object], text: str) -> float:
    """Score `answer` as `text_score` does and `bbox` by its overlap, each as a half.

    Raises:
        ValueError: the gold box has not four coordinates.
    """
    _require_box(box)
    values = read_pairs(text)
    content = text_score(answers, values["answer"]) if "answer" in values else 0.0
    try:
        predicted = ast.literal_eval(values.get("bbox", ""))
        overlap = integer_iou(predicted, box)
    except (*_UNREADABLE, IndexError, KeyError):
        overlap = 0.0
    return (content + overlap) / 2


def box_score(answers: Sequence[object], prediction: str) -> float:
    """Overlap of the last four coordinates up to 1000, in brackets, with those of the answer.

    Raises:
        ValueError: the answer has not four coordinates.
    """
    _require_box(answers)
    quads = [tuple(map(int, match.groups())) for match in _QUAD.finditer(prediction)]
    valid = [quad for quad in quads if max(quad) <= _LARGEST]
    return integer_iou(valid[-1], answers) if valid else 0.0


def _require_box(box: Sequence[object]) -> None:
    if len(box) != 4 or integer_iou(box, box) == 0:
        raise ValueError(f"its box is {str(box)[:40]}, not four coordinates with an area")


def integer_iou(first: Sequence[object], second: Sequence[object]) -> float:
    """Return the overlap of boxes with coordinates cut off to integers, in [0, 1].

    Raises:
        IndexError: a box has fewer than four coordinates.
    """
    try:
        a, b = ([int(value) for value in box] for box in (first, second))  # type: ignore[call-overload]
    except (ValueError, TypeError, OverflowError):
        return 0.0
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0, width) * max(0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - common
    return min(max(common / union, 0.0), 1.0) if union else 0.0
