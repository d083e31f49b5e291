"""RefCOCO, RefCOCO+ and RefCOCOg: the box of the object that an expression refers to.

An answer is right if the intersection over union of its box and the object's is at least 0.5
(Acc@0.5, also called precision@1). Kazemzadeh et al., "ReferItGame", EMNLP 2014; Yu et al.,
"Modeling Context in Referring Expressions", ECCV 2016; Mao et al., CVPR 2016 (RefCOCOg).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ..coordinates import Size, box_content, find_coordinates, image_size, predicted_box
from ..files.rows import BenchmarkTable, Findings, Row
from ..matching.boxes import clip, iou
from ..matching.places import Box, read_box_as_vlmevalkit
from ..prompts import Content
from ..task import Fields, TaskScore, Unit, is_broken, percent, row_answer, row_unit

METRIC = "Acc@0.5"
REQUIRED = ("question",)
LOCATES = True
THRESHOLD = 0.5
_EDGES = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")
_EXPRESSION = re.compile(r"<ref>(.*?)</ref>", re.DOTALL)
SPLITS = tuple(
    f"{name}_{split}"
    for name, splits in (
        ("RefCOCO", ("val", "testA", "testB")),
        ("RefCOCO+", ("val", "testA", "testB")),
        ("RefCOCOg", ("val", "test")),
    )
    for split in splits
)
"""The published splits, over which published averages are taken."""


def content(row: Row, style: str, coordinates: str) -> Content:
    """Build the user turn: the image, then the request for a box in the words of the rule."""
    rule = find_coordinates(coordinates)
    expression = _EXPRESSION.search(row["question"])
    if rule.box_prompt != "{}" and expression:
        row = Row(row.index, {**row.values, "question": expression[1]}, row.images)
    return box_content(row, rule)


def index(values: Mapping[str, str]) -> str:
    """Return the id of a row of the TSV, whose indices repeat in each split."""
    return f"{_split(values)}_{values['index']}"


def _split(values: Mapping[str, str]) -> str:
    """Return the name of the split as in `SPLITS`; the category may have a space in its place."""
    return values.get("split") or values.get("category", "RefCOCO").strip().replace(" ", "_")


def fields(row: Row, coordinates: str) -> Fields:
    """Return the values of a row that scoring and reports need."""
    box = _gold(row)
    split = _split(row.values)
    return {
        "id": str(row.index),
        "unit": str(row.index),
        "question": row.get("question"),
        "answer": "" if box is None else str([round(edge, 2) for edge in box]),
        "box": None if box is None else [*box],
        "size": _size(row),
        "coordinates": coordinates,
        "category": split,
        "group": split.partition("_")[0],
    }


def _size(row: Row) -> Size | None:
    """Return the size of the image: of the columns, or of its header; None without an image."""
    try:
        columns = float(row.get("width", "0")), float(row.get("height", "0"))
    except ValueError:
        columns = (0.0, 0.0)
    if min(columns) > 0:
        return columns
    return image_size(row)


def _gold(row: Row) -> Box | None:
    """Return the object's box in pixels; numbers of `answer` up to 1.5 are fractions."""
    try:
        x1, y1, x2, y2 = (float(row[edge]) for edge in _EDGES)
    except (KeyError, ValueError):
        box, size = read_box_as_vlmevalkit(row.get("answer")), _size(row)
        if box is None or size is None or max(box) > 1.5:
            return box
        return box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1]
    return x1, y1, x2, y2


def check(table: BenchmarkTable, *, published: bool) -> Findings:
    """Check that every row has an expression and a box with an area.

    Args:
        table: the file.
        published: not used; see `mmbench.check`.
    """
    findings = Findings()
    for row in table.rows:
        box = _gold(row)
        if "question" not in row.values:
            findings.faults[row.index] = "it has no question"
        elif box is None:
            findings.faults[row.index] = f"it has no box in {', '.join(_EDGES)} or answer"
        elif box[0] >= box[2] or box[1] >= box[3]:
            findings.faults[row.index] = f"its box {list(box)} has no area"
    return findings


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score by the overlap of boxes; an answer without a box is wrong and counted as unreadable.

    `extra` has the mean overlap, and the mean score of the published splits.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        profile: not used; there are no options to extract.

    Raises:
        ValueError: the size at which the model saw the images is needed and unknown.
    """
    units, overlaps, unreadable = [], [], 0
    for item in items:
        box = None if is_broken(item) else _predicted(item, predictions[item["id"]])
        unreadable += box is None and not is_broken(item)
        overlap = 0.0 if box is None else iou(box, (*item["box"],))
        overlaps.append(overlap)
        text = "" if box is None else str([round(edge) for edge in box])
        units.append(row_unit(item, overlap >= THRESHOLD, text or row_answer(item, predictions)))
    table = _score_table(units, overlaps)
    return TaskScore(
        metric=METRIC,
        units=tuple(units),
        n_rows=len(items),
        broken=sum(map(is_broken, items)),
        parse_failures=unreadable,
        refusals=0,
        extra={
            "mean IoU": percent(overlaps),
            "mean of splits": table["Average"]["Precision@1"] if units else 0.0,
        },
        table=table,
    )


def _predicted(item: Fields, answer: str) -> Box | None:
    size, rule = (*item["size"],), find_coordinates(item["coordinates"])
    box = predicted_box(rule, answer, size, item.get("input_size"))
    return None if box is None else clip(box, size)


def _score_table(units: Sequence[Unit], overlaps: Sequence[float]) -> dict[str, Any]:
    """Return precision in percent and mean overlap by split, and the means over the splits."""
    table: dict[str, Any] = {}
    for split in sorted({unit.category for unit in units}):
        part = [(u, o) for u, o in zip(units, overlaps, strict=True) if u.category == split]
        table[split] = {
            "Precision@1": percent(unit.correct for unit, _ in part),
            "Average IoU": fmean(overlap for _, overlap in part),
            "Samples": len(part),
        }
    averaged = [row for split, row in table.items() if split in SPLITS] or [*table.values()]
    if averaged:
        table["Average"] = {
            "Precision@1": fmean(row["Precision@1"] for row in averaged),
            "Average IoU": fmean(row["Average IoU"] for row in averaged),
            "Samples": sum(row["Samples"] for row in averaged),
        }
    return table
