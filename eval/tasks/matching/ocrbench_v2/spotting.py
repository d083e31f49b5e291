"""Text spotting: boxes with their texts, by the harmonic mean of precision and recall.

The end-to-end protocol of the ICDAR robust reading competitions (Karatzas et al., "ICDAR 2015
competition on Robust Reading", section on end-to-end recognition): a predicted text is right if its
box overlaps a gold box by more than a half and the texts are equal up to case and a mark at either
end of the gold text. Gold texts `###` need not be found.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import NamedTuple

from ..boxes import iou
from ..places import Box

_ITEM = re.compile(r"[\[(]([^\[\]()]*)[\])]")
_QUOTED = re.compile(r"\s*\"(.*)\"\s*\Z")
_MARKS = "!?.:,*\"()·[]/'"
_IGNORED = "###"
_LARGEST, _HALF = 1000, 0.5


class Spot(NamedTuple):
    """A text with its box."""

    box: Box
    text: str


def spotting_score(boxes: Sequence[Sequence[int]], texts: Sequence[str], prediction: str) -> float:
    """Score the texts and boxes of a prediction.

    Args:
        boxes: coordinates x, y, x, y, ... of the corners of each gold text.
        texts: the gold texts.
        prediction: list of [x1, y1, x2, y2, text], or such items anywhere.
    """
    golds = [Spot(_bounds(box), _unquote(text)) for box, text in zip(boxes, texts, strict=False)]
    spots = [Spot(box, _unquote(text)) for box, text in read_spots(prediction)]
    spots = [s for s in spots if s.box[0] < s.box[2] and s.box[1] < s.box[3]]
    if not golds or not spots:
        return 0.0
    ignored = [gold for gold in golds if gold.text == _IGNORED]
    spots = [s for s in spots if not any(_covered(s.box, gold.box) > _HALF for gold in ignored)]
    golds = [gold for gold in golds if gold.text != _IGNORED]
    hits = _count_hits(golds, spots)
    return 2 * hits / (len(golds) + len(spots)) if hits else 0.0


def read_spots(prediction: str) -> list[Spot]:
    """Read boxes with integer coordinates up to 1000 and their texts, each once."""
    try:
        value = ast.literal_eval(prediction)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = [item.split(",", 4) for item in _ITEM.findall(prediction)]
    items = value if isinstance(value, list | tuple) else []
    spots = [_spot(item) for item in items if isinstance(item, list | tuple) and len(item) >= 5]
    return list(dict.fromkeys(spot for spot in spots if spot))


def _spot(item: Sequence[object]) -> Spot | None:
    try:
        x1, y1, x2, y2 = (int(str(value).strip()) for value in item[:4])
    except ValueError:
        return None
    text = str(item[4]).replace("\n", "").strip().strip('"').strip("'")
    valid = all(0 <= value <= _LARGEST for value in (x1, y1, x2, y2))
    return Spot((x1, y1, x2, y2), text) if valid else None


def _bounds(corners: Sequence[int]) -> Box:
    xs, ys = corners[0::2], corners[1::2]
    return int(min(xs)), int(min(ys)), int(max(xs)), int(max(ys))


def _unquote(text: str) -> str:
    match = _QUOTED.match(text)
    return match[1].replace("\\\\", "\\").replace('\\"', '"') if match else text


def _covered(box: Box, by: Box) -> float:
    """Share of a box that another one covers."""
    width, height = min(box[2], by[2]) - max(box[0], by[0]), min(box[3], by[3]) - max(box[1], by[1])
    return max(width, 0) * max(height, 0) / ((box[2] - box[0]) * (box[3] - box[1]))


def _count_hits(golds: Sequence[Spot], spots: Sequence[Spot]) -> int:
    """Match each gold box with the first free box of more than half overlap; count equal texts."""
    hits, free = 0, list(spots)
    for gold in golds:
        match = next((spot for spot in free if iou(gold.box, spot.box) > _HALF), None)
        if match is not None:
            free.remove(match)
            hits += _is_equal(gold.text.upper(), match.text.upper())
    return hits


def _is_equal(gold: str, text: str) -> bool:
    begin = gold[:1] in _MARKS and gold[1:]
    end = gold[-1:] in _MARKS and gold[:-1]
    both = begin and end and gold[1:-1]
    return text in {gold, *(form for form in (begin, end, both) if form is not False)}
