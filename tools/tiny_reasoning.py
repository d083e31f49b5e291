"""Short derivations of answers from what a scene shows, as training text of a model that reasons.

A derivation names what the answer is read from, and ends in the answer: counts after a list of the
counted things, comparisons after what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from vlpress.synthetic.canvas import Mark
from vlpress.synthetic.scene import Question, Scene, in_rows

# Skills whose answer is seen at one place.
STATEMENTS: Mapping[str, str] = {
    "read": "The text is {answer}", "number": "The number is {answer}",
    "formula": "The formula is {answer}", "ink": "The {colour} text is {answer}",
    "sign": "The {colour} sign is {answer}", "line": "The {ordinal} line is {answer}",
    "value": "{key}:{answer}", "nth_read": "The {ordinal} text is {answer}",
    "colour_of": "The {shape} is {answer}", "shape_of": "The {colour} shape is {answer}",
    "bar_value": "The {colour} bar is {answer}", "largest": "The largest is {answer}",
    "smallest": "The smallest is {answer}", "inside": "The frame has {answer}",
    "where": "The {shape} is {answer}", "direction": "The {a} is {answer} the {b}",
    "beside": "{direction} the {b} is {answer}", "nth_colour": "The {ordinal} image is {answer}",
    "nth_shape": "The {ordinal} image is {answer}", "kind": "The image shows {answer}",
    "background": "The background is {answer}", "quality": "The image is {answer}",
    "repeat": "The word is {word}", "list": "row",
}  # fmt: skip
STRINGS = ("read", "number", "formula", "ink", "sign", "line", "value", "nth_read")


def derivation(scene: Scene, question: Question, *, among_options: bool = False) -> str:
    """Derive the answer of a question, in one line of English.

    Args:
        scene: the images that it is about.
        question: a question of the scene, or a `repeat` question.
        among_options: whether the answer must be found among options. A string that is read glyph
            by glyph then ends in its first one, by which a small model finds the option.

    Raises:
        ValueError: the skill has no derivation.
    """
    if question.skill in STATEMENTS:
        text = STATEMENTS[question.skill].format(answer=question.answer, **question.slots)
        is_string = question.skill in STRINGS and len(question.answer) > 1
        return f"{text}, first {question.answer[0]}" if among_options and is_string else text
    if question.skill not in LISTS:
        raise ValueError(
            f"skill {question.skill!r} has no derivation; "
            f"skills with one: {', '.join((*STATEMENTS, *LISTS))}"
        )
    return f"{', '.join(LISTS[question.skill](scene, question))}, so {question.answer}"


def _shapes(scene: Scene) -> list[Mark]:
    return [mark for row in in_rows(scene.images[0].marks) for mark in row if mark.shape]


def _things(scene: Scene, question: Question) -> list[str]:
    return [f"{mark.colour} {mark.shape}" for mark in _shapes(scene)]


def _of_shape(scene: Scene, question: Question) -> list[str]:
    wanted = question.slots["shape"]
    return [f"{mark.colour} {wanted}" for mark in _shapes(scene) if mark.shape == wanted]


def _of_colour(scene: Scene, question: Question) -> list[str]:
    wanted = question.slots["colour"]
    return [f"{wanted} {mark.shape}" for mark in _shapes(scene) if mark.colour == wanted]


def _colours(scene: Scene, question: Question) -> list[str]:
    return [mark.colour for mark in _shapes(scene)]


def _kinds(scene: Scene, question: Question) -> list[str]:
    return [mark.shape for mark in _shapes(scene)]


def _pair(scene: Scene, question: Question) -> list[str]:
    colours = {mark.shape: mark.colour for mark in _shapes(scene)}
    return [f"the {shape} is {colours[shape]}" for shape in question.slots.values()]


def _bars(scene: Scene, question: Question) -> list[str]:
    marks = sorted(scene.images[0].marks, key=lambda mark: mark.x)
    values = {mark.colour: mark.glyph for mark in marks if mark.glyph}
    return [f"{mark.colour} {values[mark.colour]}" for mark in marks if mark.shape == "bar"]


def _images(scene: Scene, question: Question) -> list[str]:
    return [_content(image.marks) for image in scene.images]


def _content(marks: Sequence[Mark]) -> str:
    return next((f"{mark.colour} {mark.shape}" for mark in marks if mark.shape), "text")


LISTS: Mapping[str, Callable[[Scene, Question], list[str]]] = {
    "count": _things,
    "count_shape": _of_shape,
    "count_colour": _of_colour,
    "odd_colour": _colours,
    "odd_shape": _kinds,
    "most_colour": _colours,
    "next_colour": _colours,
    "same_colour": _pair,
    "bar_count": _bars,
    "tallest": _bars,
    "shortest": _bars,
    "which_image": _images,
    "which_colour_image": _images,
}
"""Skills whose answer follows from several things: the things."""
