"""Scenes of shapes (positions, colours, counts) and bar charts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from PIL import ImageFilter

from .canvas import INKS, SHAPES, AnnotatedImage, Canvas, Mark, TextStyle
from .scene import (
    DIRECTIONS,
    PLACES,
    SIDE,
    Question,
    Scene,
    about,
    add_clutter,
    near_counts,
    new_canvas,
    others,
)


@dataclass(frozen=True)
class _Thing:
    shape: str
    colour: str
    column: int
    row: int
    large: bool = False


def _place(canvas: Canvas, things: Sequence[_Thing], columns: int, rng: random.Random) -> None:
    pitch = canvas.width / columns
    for thing in things:
        x = (thing.column + 0.5) * pitch + rng.uniform(-0.1, 0.1) * pitch
        y = (thing.row + 0.5) * pitch + rng.uniform(-0.1, 0.1) * pitch
        radius = (rng.uniform(0.38, 0.42) if thing.large else rng.uniform(0.23, 0.27)) * pitch
        size = "large" if thing.large else "small"
        canvas.shape(thing.shape, x, y, radius, thing.colour, size, role=_role(thing, things))


def _role(thing: _Thing, things: Sequence[_Thing]) -> str:
    """Return the role of a thing that alone differs in colour or shape from at least two others."""
    rest = [t for t in things if t is not thing]
    for role, of in (("odd colour", "colour"), ("odd shape", "shape")):
        values = {getattr(t, of) for t in rest}
        if len(rest) >= 2 and len(values) == 1 and getattr(thing, of) not in values:
            return role
    return ""


def _cells(rng: random.Random, count: int, columns: int = 3) -> list[tuple[int, int]]:
    return rng.sample([(c, r) for c in range(columns) for r in range(columns)], count)


def _inks(canvas: Canvas, rng: random.Random, count: int) -> list[str]:
    return rng.sample(INKS, count)


def shapes(rng: random.Random) -> Scene:
    """Draw one to six shapes on a loose 3 x 3 grid."""
    canvas = new_canvas(rng)
    add_clutter(canvas, rng, 3)
    count = rng.randint(1, 6)
    palette = _inks(canvas, rng, rng.randint(2, 5))
    kinds = rng.sample(SHAPES, rng.randint(2, 6))
    large = rng.random() < 0.5
    things = [
        _Thing(rng.choice(kinds), rng.choice(palette), c, r, large=large)
        for c, r in _cells(rng, count)
    ]
    if count >= 3 and rng.random() < 0.5:  # one shape of another size
        things = [
            _Thing(t.shape, t.colour, t.column, t.row, large=(i == 0) != large)
            for i, t in enumerate(things)
        ]
    _place(canvas, things, 3, rng)
    questions = [Question("count", str(count), near_counts(count, rng))]
    questions += _counts(things, rng) + _attributes(things) + _positions(things, rng)
    image = canvas.finish()
    if rng.random() < 0.3:
        image, blurred = _blur(image, rng)
        answer = "blurred" if blurred else "sharp"
        questions.append(Question("quality", answer, others(("sharp", "blurred"), answer)))
    return Scene("shapes", (image,), (*questions, *about(canvas, "shapes")))


def _blur(image: AnnotatedImage, rng: random.Random) -> tuple[AnnotatedImage, bool]:
    if rng.random() < 0.5:
        return image, False
    blurred = image.image.filter(ImageFilter.GaussianBlur(rng.uniform(1.6, 2.2)))
    return AnnotatedImage(blurred, tuple(replace(mark, blurred=True) for mark in image.marks)), True


def _counts(things: Sequence[_Thing], rng: random.Random) -> list[Question]:
    out = []
    for shape in {t.shape: None for t in things}:
        count = sum(t.shape == shape for t in things)
        out.append(Question("count_shape", str(count), near_counts(count, rng), {"shape": shape}))
    for colour in {t.colour: None for t in things}:
        count = sum(t.colour == colour for t in things)
        out.append(
            Question("count_colour", str(count), near_counts(count, rng), {"colour": colour})
        )
    return out


def _attributes(things: Sequence[_Thing]) -> list[Question]:
    out = []
    for t in things:
        if sum(o.shape == t.shape for o in things) == 1:
            slots = {"shape": t.shape}
            out.append(Question("colour_of", t.colour, others(INKS, t.colour), slots))
        if sum(o.colour == t.colour for o in things) == 1:
            slots = {"colour": t.colour}
            out.append(Question("shape_of", t.shape, others(SHAPES, t.shape), slots))
    sizes = [t for t in things if t.large]
    if len(things) >= 3 and len(sizes) == 1:
        shape = sizes[0].shape
        out.append(Question("largest", shape, others(SHAPES, shape)))
    if len(things) >= 3 and len(sizes) == len(things) - 1:
        shape = next(t.shape for t in things if not t.large)
        out.append(Question("smallest", shape, others(SHAPES, shape)))
    return out


def _positions(things: Sequence[_Thing], rng: random.Random) -> list[Question]:
    out = []
    single = [t for t in things if sum(o.shape == t.shape for o in things) == 1]
    corners = {
        (0, 0): "top left", (2, 0): "top right", (0, 2): "bottom left", (2, 2): "bottom right",
        (1, 1): "center",
    }  # fmt: skip
    for t in single:
        if (t.column, t.row) in corners:
            position = corners[t.column, t.row]
            out.append(Question("where", position, others(PLACES, position), {"shape": t.shape}))
    for a in single:
        for b in single:
            direction = _direction(a, b)
            if a is b or not direction:
                continue
            slots = {"a": a.shape, "b": b.shape}
            out.append(Question("direction", direction, others(DIRECTIONS, direction), slots))
            if rng.random() < 0.5:
                same = "yes" if a.colour == b.colour else "no"
                out.append(Question("same_colour", same, others(("yes", "no"), same), slots))
            if sum(_direction(o, b) == direction for o in things if o is not b) == 1:
                slots = {
                    "b": b.shape,
                    "direction": f"{direction} of" if direction in ("left", "right") else direction,
                }
                out.append(Question("beside", a.shape, others(SHAPES, a.shape), slots))
    return out


def _direction(a: _Thing, b: _Thing) -> str:
    """Return the direction from `b` to `a` if they share a row or column, else an empty string."""
    if a.row == b.row and a.column != b.column:
        return "left" if a.column < b.column else "right"
    if a.column == b.column and a.row != b.row:
        return "above" if a.row < b.row else "below"
    return ""


def pair(rng: random.Random) -> Scene:
    """Draw two or three different shapes in one row or column: positions and equal colours."""
    canvas = new_canvas(rng)
    count = rng.randint(2, 3)
    across, line = rng.random() < 0.5, rng.randrange(3)
    spots = sorted(rng.sample(range(3), count))
    cells = [(s, line) if across else (line, s) for s in spots]
    kinds = rng.sample(SHAPES, count)
    colours = [rng.choice(INKS) for _ in range(count)]
    if rng.random() < 0.5:
        colours[1] = colours[0]
    large = rng.random() < 0.5
    things = [
        _Thing(k, c, *cell, large=large) for k, c, cell in zip(kinds, colours, cells, strict=True)
    ]
    _place(canvas, things, 3, rng)
    a, b = rng.sample(things, 2)
    same = "yes" if a.colour == b.colour else "no"
    questions = _attributes(things) + _positions(things, rng)
    slots = {"a": a.shape, "b": b.shape}
    questions.append(Question("same_colour", same, others(("yes", "no"), same), slots))
    return Scene("pair", (canvas.finish(),), (*questions, *about(canvas, "shapes")))


def odd(rng: random.Random) -> Scene:
    """Draw three to six shapes, one of which differs from the others."""
    canvas = new_canvas(rng)
    count = rng.randint(3, 6)
    colour, other_colour = rng.sample(INKS, 2)
    shape, other_shape = rng.sample(SHAPES, 2)
    by_colour = rng.random() < 0.5
    things = []
    for i, (c, r) in enumerate(_cells(rng, count)):
        kind = other_shape if i == 0 and not by_colour else shape
        ink = other_colour if i == 0 and by_colour else colour
        if not by_colour and i and rng.random() < 0.3:
            ink = rng.choice(INKS)
        if by_colour and i and rng.random() < 0.3:
            kind = rng.choice(SHAPES)
        things.append(_Thing(kind, ink, c, r))
    _place(canvas, things, 3, rng)
    questions = [Question("count", str(count), near_counts(count, rng)), *_counts(things, rng)]
    if by_colour:
        questions.append(Question("odd_colour", other_colour, others(INKS, other_colour)))
        questions.append(Question("most_colour", colour, others(INKS, colour)))
    elif sum(t.shape == other_shape for t in things) == 1:
        questions.append(Question("odd_shape", other_shape, others(SHAPES, other_shape)))
    return Scene("odd", (canvas.finish(),), (*questions, *about(canvas, "shapes")))


def row(rng: random.Random) -> Scene:
    """Draw a row of shapes with periodic colours; the question is the next colour."""
    canvas = new_canvas(rng)
    period = rng.randint(2, 3)
    count = rng.randint(max(4, period + 1), 5)
    colours = rng.sample(INKS, period)
    shape = rng.choice(SHAPES)
    pitch, y = SIDE / 5, rng.uniform(30, SIDE - 30)
    for i in range(count):
        x = (i + 0.5) * pitch + rng.uniform(-1, 1)
        role = "next" if i == count - period else ""  # its colour repeats next
        lower = y + rng.uniform(-2, 2)
        canvas.shape(shape, x, lower, 8.0, colours[i % period], "small", role=role)
    answer = colours[count % period]
    questions = [
        Question("next_colour", answer, others(INKS, answer)),
        Question("count", str(count), near_counts(count, rng)),
    ]
    return Scene("row", (canvas.finish(),), (*questions, *about(canvas, "shapes")))


def frame(rng: random.Random) -> Scene:
    """Draw two to four shapes, one of them inside a frame."""
    canvas = new_canvas(rng)
    count = rng.randint(2, 4)
    kinds = rng.sample(SHAPES, count)
    things = [
        _Thing(k, rng.choice(INKS), c, r)
        for k, (c, r) in zip(kinds, _cells(rng, count), strict=True)
    ]
    pitch, inside = SIDE / 3, things[0]
    x, y, half = (inside.column + 0.5) * pitch, (inside.row + 0.5) * pitch, pitch * 0.44
    border = "white" if canvas.is_dark else "black"
    corners = [
        (x - half, y - half),
        (x + half, y - half),
        (x + half, y + half),
        (x - half, y + half),
    ]
    canvas.line([*corners, corners[0]], canvas.ink(border), 2.0)
    _place(canvas, things, 3, rng)
    mark = canvas.marks[0]
    canvas.marks[0] = Mark(mark.x, mark.y, mark.colour, shape=mark.shape, size="framed")
    questions = [Question("inside", inside.shape, others(SHAPES, inside.shape))]
    questions += _attributes(things)
    return Scene("frame", (canvas.finish(),), (*questions, *about(canvas, "shapes")))


def chart(rng: random.Random) -> Scene:
    """Draw a bar chart with the values above the bars."""
    canvas = new_canvas(rng)
    count = rng.randint(2, 4)
    colours = rng.sample(INKS, count)
    values = rng.sample(range(1, 10), count)
    pitch, base = SIDE / count, SIDE - 8
    axis = canvas.ink("white" if canvas.is_dark else "black")
    style = TextStyle(rng.choice(("sans", "round")), 14, 14, weight=2.0)
    ink = "white" if canvas.is_dark else "black"
    for i, (colour, value) in enumerate(zip(colours, values, strict=True)):
        x, top = (i + 0.5) * pitch, base - 8 * value
        half = min(10.0, pitch * 0.34)
        canvas.box(x - half, top, x + half, base, canvas.ink(colour))
        canvas.marks.append(Mark(x, top + 4, colour, shape="bar"))
        canvas.glyph(str(value), x, top - 10, ink, style, on=colour)
    canvas.line([(3, base), (SIDE - 3, base)], axis, 1.5)
    tallest = colours[values.index(max(values))]
    shortest = colours[values.index(min(values))]
    questions = [
        Question("tallest", tallest, others(INKS, tallest)),
        Question("shortest", shortest, others(INKS, shortest)),
        Question("bar_count", str(count), near_counts(count, rng)),
    ]
    for colour, value in zip(colours, values, strict=True):
        wrong = others([str(v) for v in range(1, 10)], str(value))
        questions.append(Question("bar_value", str(value), wrong, {"colour": colour}))
    return Scene("chart", (canvas.finish(),), (*questions, *about(canvas, "chart")))
