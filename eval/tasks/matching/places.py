"""Boxes and points in answers, as numbers in the order in which they are written.

Read are JSON (`{"bbox_2d": [x1, y1, x2, y2]}`, `{"point_2d": [x, y]}`, in a code block or not, also
if it is cut off after the numbers), `(x1,y1),(x2,y2)` with or without the marks of Qwen2-VL
(`<|box_start|>`), bare lists, `x=1, y=2`, the attributes of `<points x1="1" y1="2">` and
`<point>1 2</point>`; without any, an answer of nothing but two or four numbers. The first place
counts; one after a JSON key for places comes before all others, because labels may have numbers in
brackets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Box = tuple[float, float, float, float]
Point = tuple[float, float]

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)"
_VALUE = rf"[\"']?({_NUMBER})[\"']?"
_NEXT = r"(?:\s*[,;]\s*|\s+)"
_BETWEEN = rf"(?:\s*[)\]](?:\s*,)?\s*[(\[]\s*|{_NEXT})"  # of the corners
_BOX = rf"[(\[]\s*{_VALUE}{_NEXT}{_VALUE}{_BETWEEN}{_VALUE}{_NEXT}{_VALUE}\s*[)\]]"
_PAIR = rf"[(\[]\s*{_VALUE}{_NEXT}{_VALUE}\s*[)\]]"
_KEYS = "bbox_2d|bbox|box_2d|box|point_2d|point|coordinates?"
_KEY = rf"[\"'](?:{_KEYS})[\"']\s*:\s*(?:[(\[]\s*(?=[(\[]))?"


def _attributes(*names: str) -> str:
    """Return the pattern of several `name=number` or `"name": number` in a row."""
    return r"(?:\s*,)?\s*[\"']?".join(rf"\b{name}[\"']?\s*[=:]\s*{_VALUE}" for name in names)


_CORNERS = _attributes("x1", "y1", "x2", "y2")
_NAMED = f"{_attributes('x', 'y')}|{_attributes('x1', 'y1')}"
_TAG = rf"<point>\s*{_VALUE}{_NEXT}{_VALUE}"
_BOXES = [
    re.compile(pattern)
    for pattern in (
        rf"{_KEY}{_BOX}",
        rf"{_BOX}|{_CORNERS}",
        rf"\A\s*{_NEXT.join([_VALUE] * 4)}\s*\Z",
    )
]
_PLACES = [
    re.compile(pattern)
    for pattern in (
        rf"{_KEY}(?:{_BOX}|{_PAIR})",
        rf"{_BOX}|{_CORNERS}|{_PAIR}|{_NAMED}|{_TAG}",
        rf"\A\s*{_VALUE}{_NEXT}{_VALUE}(?:{_NEXT}{_VALUE}{_NEXT}{_VALUE})?\s*\Z",
    )
]
_LOOSE_NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
_LOOSE_GAP = r"(?:\s*,\s*|\s+)"
_LOOSE_BOX = re.compile(rf"\[\s*{_LOOSE_GAP.join([f'({_LOOSE_NUMBER})'] * 4)}\s*\]")
_CLICK = re.compile(r"x=([\d.]+), y=([\d.]+)")


def read_box(text: str) -> Box | None:
    """Read the first box of an answer; None without one.

    Example:
        >>> read_box('```json [{"bbox_2d": [1, 2, 30, 40.5], "label": "cat"}] ```')
        (1.0, 2.0, 30.0, 40.5)
        >>> read_box("<|box_start|>(1,2),(30,40)<|box_end|>"), read_box("[1, 2]")
        ((1.0, 2.0, 30.0, 40.0), None)
    """
    numbers = _first(_BOXES, text)
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if numbers else None


def read_point(text: str) -> Point | None:
    """Read the first point of an answer, or the centre of its first box; None without one.

    Example:
        >>> read_point('{"point_2d": [5, 7], "label": "ok"}'), read_point("[0, 0, 10, 4]")
        ((5.0, 7.0), (5.0, 2.0))
        >>> read_point("click(x=3, y=4)"), read_point('<points x1="3" y1="4">ok</points>')
        ((3.0, 4.0), (3.0, 4.0))
    """
    numbers = _first(_PLACES, text)
    if len(numbers) == 4:
        return (numbers[0] + numbers[2]) / 2, (numbers[1] + numbers[3]) / 2
    return (numbers[0], numbers[1]) if numbers else None


def _first(patterns: Sequence[re.Pattern[str]], text: str) -> list[float]:
    """Return the numbers of the first match of the first pattern that matches; else nothing."""
    for pattern in patterns:
        if match := pattern.search(text):
            return [float(group) for group in match.groups() if group is not None]
    return []


def read_box_as_vlmevalkit(text: str) -> Box | None:
    """Read the first list of four numbers, or the first four numbers wherever they are.

    The rule of VLMEvalKit's class for RefCOCO.

    Example:
        >>> read_box_as_vlmevalkit("1 cat of 2: 3, 4 and 5")
        (1.0, 2.0, 3.0, 4.0)
    """
    match = _LOOSE_BOX.search(text)
    numbers = list(match.groups()) if match else re.findall(_LOOSE_NUMBER, text)[:4]
    if len(numbers) < 4:
        return None
    first, second, third, fourth = map(float, numbers)
    return first, second, third, fourth


def read_click(text: str) -> Point | None:
    """Read the first `x=1, y=2`, as VLMEvalKit's class for ScreenSpot; None without one.

    Example:
        >>> read_click("pyautogui.click(x=0.5, y=12)"), read_click("(1, 2)")
        ((0.5, 12.0), None)
    """
    match = _CLICK.search(text)
    try:
        return (float(match[1]), float(match[2])) if match else None
    except ValueError:  # several full stops in a number
        return None
