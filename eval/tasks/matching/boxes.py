"""Geometry of boxes (x1, y1, x2, y2) in pixels, with x to the right and y downwards."""

from __future__ import annotations

import math

from .places import Box, Point


def clip(box: Box, size: tuple[float, float]) -> Box:
    """Cut a box off at the borders of an image, and order its corners.

    Args:
        box: two opposite corners.
        size: width and height of the image.
    """
    width, height = size
    left, right = sorted(min(max(x, 0.0), width) for x in box[0::2])
    top, bottom = sorted(min(max(y, 0.0), height) for y in box[1::2])
    return left, top, right, bottom


def iou(first: Box, second: Box) -> float:
    """Return the intersection over union of two boxes, in [0, 1]; 0 if both have no area.

    Example:
        >>> iou((0, 0, 4, 2), (2, 0, 6, 2))
        0.3333333333333333
    """
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    common = width * height
    union = _area(first) + _area(second) - common
    return common / union if union else 0.0  # both areas can be too small for a number


def contains(box: Box, point: Point) -> bool:
    """Whether a point is in a box or on its border."""
    return box[0] <= point[0] <= box[2] and box[1] <= point[1] <= box[3]


def distance_to_centre(box: Box, point: Point, size: tuple[float, float]) -> float:
    """Return the distance of a point from the centre of a box, over the image's diagonal; up to 1.

    Args:
        box: the box.
        point: the point.
        size: width and height of the image, positive.
    """
    across = point[0] - (box[0] + box[2]) / 2
    down = point[1] - (box[1] + box[3]) / 2
    return min(math.hypot(across, down) / math.hypot(*size), 1.0)


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)
