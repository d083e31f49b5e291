"""ScreenSpot: the element of a screen that an instruction refers to, answered by a point.

An answer is right if its point is in the element's box; a box counts by its centre. Cheng et al.,
"SeeClick: Harnessing GUI Grounding for Advanced Visual GUI Agents", ACL 2024; v2: Wu et al.,
"OS-ATLAS", arXiv 2410.23218.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence

from ..coordinates import Size, find_coordinates, image_size, point_content, predicted_point
from ..files.rows import BenchmarkTable, Findings, Row
from ..matching.boxes import contains, distance_to_centre
from ..matching.places import Box, Point
from ..prompts import Content
from ..task import Fields, TaskScore, is_broken, percent, row_answer, row_unit, tabulate_units

METRIC = "click accuracy"
REQUIRED = ("question", "bbox")
LOCATES = True


def content(row: Row, style: str, coordinates: str) -> Content:
    """Build the user turn: the image and the request for a point in the words of the rule."""
    return point_content(row, find_coordinates(coordinates))


def fields(row: Row, coordinates: str) -> Fields:
    """Return the values of a row that scoring and reports need."""
    box = _gold(row)
    return {
        "id": str(row.index),
        "unit": str(row.index),
        "question": row.get("question"),
        "answer": "" if box is None else str([round(edge, 2) for edge in box]),
        "box": None if box is None else [*box],
        "size": image_size(row),
        "coordinates": coordinates,
        "category": row.get("data_type", "none"),
        "group": row.get("data_source", "none"),
        "split": row.get("split"),
    }


def _gold(row: Row) -> Box | None:
    """Return the element's box in pixels, its last row and column included.

    The cell has left, top, width and height; an edge of -1 is 0, as in VLMEvalKit.
    """
    try:
        left, top, width, height = map(float, ast.literal_eval(row.get("bbox")))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    edges = left, top, left + width - 1, top + height - 1
    x1, y1, x2, y2 = (0.0 if edge == -1 else edge for edge in edges)
    return x1, y1, x2, y2


def check(table: BenchmarkTable, *, published: bool) -> Findings:
    """Check that every row has an instruction and a box within its image.

    Args:
        table: the file.
        published: not used; see `mmbench.check`.
    """
    findings = Findings()
    for row in table.rows:
        box, size = _gold(row), image_size(row)
        if "question" not in row.values:
            findings.faults[row.index] = "it has no question"
        elif box is None:
            cell = row.get("bbox", "nothing")[:40]
            findings.faults[row.index] = f"its bbox is {cell}, not [left, top, width, height]"
        elif size is not None and not _is_within(box, size):
            findings.faults[row.index] = f"its box {list(box)} is not within the image"
    return findings


def _is_within(box: Box, size: Size) -> bool:
    ordered = box[0] <= box[2] and box[1] <= box[3]
    return ordered and min(box) >= 0 and box[2] <= size[0] and box[3] <= size[1]


def score(items: Sequence[Fields], predictions: Mapping[str, str], profile: str) -> TaskScore:
    """Score by points in boxes; an answer without a place is wrong and counted as unreadable.

    `extra` has the mean distance of the points from the centres of the boxes, in percent of the
    image's diagonal, over the answers with a place.

    Args:
        items: fields of all rows, broken ones included.
        predictions: item id -> answer.
        profile: not used; there are no options to extract.

    Raises:
        ValueError: the size at which the model saw the images is needed and unknown.
    """
    units, distances, unreadable = [], [], 0
    for item in items:
        point = None if is_broken(item) else _predicted(item, predictions[item["id"]])
        unreadable += point is None and not is_broken(item)
        text, hit = row_answer(item, predictions), False
        if point is not None:
            box = (*item["box"],)
            hit, text = contains(box, point), f"{point[0]:.0f} {point[1]:.0f}"
            distances.append(distance_to_centre(box, point, item["size"]))
        units.append(row_unit(item, hit, text))
    return TaskScore(
        metric=METRIC,
        units=tuple(units),
        n_rows=len(items),
        broken=sum(map(is_broken, items)),
        parse_failures=unreadable,
        refusals=0,
        extra={"distance to centre": percent(distances)},
        table=tabulate_units(units, [item["split"] for item in items]),
    )


def _predicted(item: Fields, answer: str) -> Point | None:
    rule = find_coordinates(item["coordinates"])
    return predicted_point(rule, answer, (*item["size"],), item.get("input_size"))
