"""How models write places in images: one rule per family, with its prompts and its unit.

The rule is recorded in the fingerprint of a benchmark of places, because a place read by another
family's rule is another place. Sources: the model cards and cookbooks of QwenLM (Qwen2-VL and
Qwen3-VL: thousandths of width and height; Qwen2.5-VL: pixels of the image as the model sees it,
after `smart_resize`), and VLMEvalKit's classes for RefCOCO and ScreenSpot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .files.rows import Row
from .matching.places import Box, Point, read_box, read_box_as_vlmevalkit, read_click, read_point
from .prompts import Content, image_part, text_part

Size = tuple[float, float]
"""Width and height in pixels."""


@dataclass(frozen=True)
class Coordinates:
    """One rule; in prompts, `{}` is the description of what is to be found."""

    box_prompt: str
    point_prompt: str
    sides: Callable[[Sequence[float], Size, Size | None], Size]
    """Width and height of an image in the unit of an answer, by the numbers of the answer, the size
    of the image and the size at which the model sees it."""
    read_box: Callable[[str], Box | None] = read_box
    read_point: Callable[[str], Point | None] = read_point
    resized: bool = False
    """Whether the size at which the model sees an image must be known."""
    point_preface: str = ""
    """Text before the image of a task of points."""


def _thousandths(numbers: Sequence[float], size: Size, resized: Size | None) -> Size:
    return 1000, 1000


def _resized_pixels(numbers: Sequence[float], size: Size, resized: Size | None) -> Size:
    if resized is None:
        raise ValueError(
            "the size at which the model sees an image is unknown; evaluate with the processor of "
            "the model, or with the --reference of one"
        )
    return resized


def _by_magnitude(numbers: Sequence[float], size: Size, resized: Size | None) -> Size:
    """Fractions if no number of a box exceeds 1.5, thousandths up to 1000, else pixels.

    Of a point, fractions if no number exceeds 1, else pixels.
    """
    largest = max(map(abs, numbers))
    if largest <= (1.5 if len(numbers) == 4 else 1):
        return 1, 1
    return (1000, 1000) if len(numbers) == 4 and largest <= 1000 else size


_JSON_BOX = 'Locate the object that matches the description "{}" in the image. Report its bbox '
_JSON_POINT = (
    'Point to the element of this screen for the instruction "{}". Report its point coordinates in '
    'JSON format like this: {"point_2d": [x, y]}'
)

COORDINATES: Mapping[str, Coordinates] = {
    "qwen2-vl": Coordinates(
        box_prompt="Please provide the bounding box of the region this sentence describes: {}",
        point_prompt="Please provide the bounding box of the element of this screen for the "
        "instruction: {}",
        sides=_thousandths,
    ),
    "qwen2.5-vl": Coordinates(
        box_prompt=_JSON_BOX + "coordinates in JSON format.",
        point_prompt=_JSON_POINT,
        sides=_resized_pixels,
        resized=True,
    ),
    "qwen3-vl": Coordinates(
        box_prompt=_JSON_BOX + "coordinates in JSON format.",
        point_prompt=_JSON_POINT,
        sides=_thousandths,
    ),
    "vlmevalkit": Coordinates(
        box_prompt="{}",
        point_prompt="Please complete the following tasks by clicking using `pyautogui.click`:\n{}",
        sides=_by_magnitude,
        read_box=read_box_as_vlmevalkit,
        read_point=read_click,
        point_preface="You are a GUI agent. You are given a task and a screenshot of the screen. "
        "You need to perform pyautogui click/moveTo action to complete the task. The answer format "
        "is `pyautogui.click(x=?, y=?), x and y is necessary`",
    ),
}
_FAMILY_COORDINATES = {
    "qwen2_vl": "qwen2-vl",
    "qwen2_5_vl": "qwen2.5-vl",
    "qwen3_vl": "qwen3-vl",
    "qwen3_vl_moe": "qwen3-vl",
    "qwen3_5": "qwen3-vl",
    "qwen3_5_moe": "qwen3-vl",
    "qwen": "qwen2-vl",
}


def find_coordinates(name: str) -> Coordinates:
    """Return the rule of a name.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in COORDINATES:
        raise ValueError(f"unknown coordinates {name!r}; choose one of {', '.join(COORDINATES)}")
    return COORDINATES[name]


def default_coordinates(family: str) -> str | None:
    """Return the name of the rule of a model family; None for one whose rule is not known."""
    return _FAMILY_COORDINATES.get(family)


def image_size(row: Row) -> Size | None:
    """Return the size of the first image of a row; None without a readable one."""
    try:
        return row.images[0].size if row.images else None
    except ValueError:  # found again, and reported, when images are decoded
        return None


def box_content(row: Row, rule: Coordinates) -> Content:
    """Build the user turn that asks for the box of what `question` describes."""
    return [*map(image_part, row.images), text_part(_fill(rule.box_prompt, row))]


def point_content(row: Row, rule: Coordinates) -> Content:
    """Build the user turn that asks for a point on what `question` describes."""
    preface = [text_part(rule.point_preface)] if rule.point_preface else []
    return [*preface, *map(image_part, row.images), text_part(_fill(rule.point_prompt, row))]


def _fill(template: str, row: Row) -> str:
    return template.replace("{}", row["question"])


def predicted_box(rule: Coordinates, answer: str, size: Size, resized: Size | None) -> Box | None:
    """Read the box of an answer, in pixels of the image; None without one.

    Args:
        rule: the family's rule.
        answer: the model's answer.
        size: size of the image.
        resized: size at which the model sees it; None: unknown.

    Raises:
        ValueError: the rule needs an unknown size.
    """
    box = rule.read_box(answer)
    if box is None:
        return None
    x1, y1, x2, y2 = _to_pixels(rule, box, size, resized)
    return x1, y1, x2, y2


def predicted_point(
    rule: Coordinates, answer: str, size: Size, resized: Size | None
) -> Point | None:
    """Read the point of an answer, see `predicted_box`."""
    point = rule.read_point(answer)
    if point is None:
        return None
    x, y = _to_pixels(rule, point, size, resized)
    return x, y


def _to_pixels(
    rule: Coordinates, numbers: Sequence[float], size: Size, resized: Size | None
) -> list[float]:
    """Convert x and y in turn to pixels of the image."""
    sides = rule.sides(numbers, size, resized)
    return [number / sides[i % 2] * size[i % 2] for i, number in enumerate(numbers)]
