"""Scenes: each draws one picture (or several) and lists what can be asked about it.

A scene function takes a ``random.Random`` and returns a ``Scene``. Questions name a skill (the key
of the phrasings), the slots to fill, the answer, and a pool of wrong answers of the same kind, so
that nothing but the picture tells the right one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageFilter

from . import words
from .draw import DARK, INKS, LIGHT, SHAPES, Canvas, Mark, Picture, TextStyle

PLACES = ("top left", "top right", "bottom left", "bottom right", "center")
DIRECTIONS = ("left", "right", "above", "below")
ORDINALS = ("first", "second", "third")
KINDS = ("words", "shapes", "chart", "form", "formula")
SIDE = 112  # pixels of a single picture
SMALL_SIDE = 84  # pixels of each picture of a multi-image question


@dataclass(frozen=True)
class Question:
    """One thing to ask; ``wrong`` is a pool of wrong answers, empty if options make no sense."""

    skill: str
    answer: str
    wrong: tuple[str, ...]
    slots: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """What a scene function returns; ``kind`` is the name of the function without its prefix."""

    kind: str
    pictures: tuple[Picture, ...]
    questions: tuple[Question, ...]


def _others(pool: Sequence[str], answer: str) -> tuple[str, ...]:
    return tuple(x for x in pool if x != answer)


def _near(count: int, rng: random.Random, lowest: int = 1) -> tuple[str, ...]:
    """Three wrong counts such that the right one has a random rank among the four."""
    first = max(lowest, count - rng.randint(0, 3))
    return _others([str(first + i) for i in range(4)], str(count))


def _strings(answer: str, make: Callable[[], str]) -> tuple[str, ...]:
    """Four wrong strings from the source of the right one: unseen, all are equally likely."""
    found: dict[str, None] = {}
    while len(found) < 4:
        wrong = make()
        if wrong != answer:
            found[wrong] = None
    return tuple(found)


def _number_or_word(rng: random.Random, words_share: float) -> Callable[[], str]:
    """A source of short words, or of numbers of one length."""
    if rng.random() < words_share:
        return lambda: words.word(rng, 5)
    length = rng.randint(2, 4)
    return lambda: words.number(rng, length)


def _canvas(rng: random.Random, side: int = SIDE) -> Canvas:
    background = rng.choice(LIGHT if rng.random() < 0.75 else DARK)
    return Canvas(side, side, background, rng)


def _text_colour(canvas: Canvas, rng: random.Random) -> str:
    """A text colour that can be told from the background."""
    if rng.random() < 0.4:
        return "white" if canvas.is_dark else "black"
    dull = ("yellow", "pink") if not canvas.is_dark else ("purple", "brown", "blue")
    return rng.choice([c for c in INKS if c not in dull])


def _clutter(canvas: Canvas, rng: random.Random, amount: int) -> None:
    """Thin lines and dots in a colour near the background's."""
    shift = 38 if canvas.is_dark else -38
    red, green, blue = (min(255, max(0, v + shift)) for v in canvas.background)
    faint = (red, green, blue)
    for _ in range(rng.randint(0, amount)):
        ends = [(rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)) for _ in range(2)]
        if rng.random() < 0.6:
            canvas.line(ends, faint, 1.0)
        else:
            canvas.disc(*ends[0], rng.uniform(1, 3), faint)


# --- text -----------------------------------------------------------------------------------


def _style(rng: random.Random, face: str, length: int, side: int = SIDE) -> TextStyle:
    """Size and spacing that fit ``length`` glyphs; the advance keeps one glyph to a patch."""
    advance = rng.uniform(15.5, max(15.6, min(21.0, (side - 12) / length)))
    height = rng.uniform(14, min(23, advance * 1.35))
    return TextStyle(face, height, advance, weight=rng.uniform(1.8, 2.6) * height / 17)


TEXT_KINDS = ("regular", "irregular", "artistic", "handwriting", "digits", "non_semantic")


def text(rng: random.Random, kind: str = "") -> Scene:
    """One string, drawn in the manner of ``kind`` (one of ``TEXT_KINDS``, random if empty)."""
    kind = kind or rng.choice(TEXT_KINDS)
    canvas = _canvas(rng)
    length = rng.randint(2, 6) if kind == "digits" else rng.randint(3, 5)
    sources: dict[str, Callable[[], str]] = {
        "digits": lambda: words.number(rng, length),
        "non_semantic": lambda: (words.letters if length % 2 else words.code)(rng, length),
    }
    make = sources.get(kind, lambda: words.word(rng))
    string = make()
    faces = {
        "handwriting": ("hand",),
        "artistic": ("hollow", "wide", "angular"),
    }.get(kind, ("sans", "sans", "round", "slanted", "angular"))
    style = _style(rng, rng.choice(faces), len(string))
    angle = wave = 0.0
    if kind == "irregular":
        angle = rng.choice((-1, 1)) * rng.uniform(8, 24)
        wave = 0.0 if rng.random() < 0.5 else rng.uniform(2, 5)
    elif kind == "handwriting":
        angle = rng.uniform(-6, 6)
    elif kind == "artistic":
        wave = rng.uniform(0, 4)
    style = TextStyle(style.face, style.height, style.advance, angle, wave, style.weight)
    _clutter(canvas, rng, 6)
    reach = style.advance * (len(string) - 1) / 2 + 8
    slack = max(0.0, SIDE / 2 - reach - 2)
    x = SIDE / 2 + rng.uniform(-slack, slack)
    margin = 16 + abs(angle) * 1.1 + wave
    y = rng.uniform(margin, SIDE - margin)
    colour = _text_colour(canvas, rng)
    if kind == "artistic" and rng.random() < 0.6:
        colours = [c for c in INKS if c not in ("yellow", "pink", "brown", "blue")]
        for i, character in enumerate(string):
            along = (i - (len(string) - 1) / 2) * style.advance
            lift = wave if i % 2 else -wave
            canvas.glyph(character, x + along, y + lift, rng.choice(colours), style)
    else:
        canvas.text(string, x, y, colour, style)
    skill = "number" if kind == "digits" else "read"
    questions = [Question(skill, string, _strings(string, make))]
    return Scene("text", (canvas.finish(),), (*questions, *_about(canvas, "words")))


def signs(rng: random.Random) -> Scene:
    """Two or three words: each in its own ink, or white on signs of different colours."""
    canvas = _canvas(rng)
    as_signs = rng.random() < 0.5
    count = rng.randint(2, 3)
    dull = ("yellow", "pink") if not canvas.is_dark else ("purple", "brown", "blue")
    pool = [c for c in INKS if c not in (("yellow", "pink") if as_signs else dull)]
    colours = rng.sample(pool, count)
    rows = [SIDE * (i + 0.5) / count + rng.uniform(-4, 4) for i in range(count)]
    _clutter(canvas, rng, 4)
    questions = []
    for colour, y in zip(colours, rows, strict=True):
        make = _number_or_word(rng, 0.7)
        string = make()
        style = _style(rng, rng.choice(("sans", "round", "angular")), len(string))
        reach = style.advance * (len(string) - 1) / 2
        slack = max(0.0, SIDE / 2 - reach - 12)
        x = SIDE / 2 + rng.uniform(-slack, slack)
        if as_signs:
            half = style.height * 0.5 + 5
            canvas.box(x - reach - 11, y - half, x + reach + 11, y + half, canvas.ink(colour))
            canvas.text(string, x, y, "white", style, on=colour)
        else:
            canvas.text(string, x, y, colour, style)
        skill = "sign" if as_signs else "ink"
        questions.append(Question(skill, string, _strings(string, make), {"colour": colour}))
    return Scene("signs", (canvas.finish(),), (*questions, *_about(canvas, "words")))


def lines(rng: random.Random) -> Scene:
    """A small document: two to four lines, flush left."""
    canvas = _canvas(rng)
    count = rng.randint(2, 4)
    colour = _text_colour(canvas, rng)
    face = rng.choice(("sans", "round", "slanted", "angular"))
    questions = []
    top = rng.uniform(13, 15)
    pitch = (SIDE - 2 * top) / max(count - 1, 2)
    for i in range(count):
        make = _number_or_word(rng, 0.75)
        string = make()
        style = TextStyle(face, rng.uniform(14, 17), 16.0, weight=rng.uniform(1.8, 2.3))
        x = 14 + style.advance * (len(string) - 1) / 2 + rng.uniform(0, 8)
        canvas.text(string, x, top + i * pitch, colour, style)
        ordinals = ([ORDINALS[i]] if i < 3 else []) + (["last"] if i == count - 1 else [])
        slots = {"ordinal": rng.choice(ordinals)}
        questions.append(Question("line", string, _strings(string, make), slots))
    return Scene("lines", (canvas.finish(),), (*questions, *_about(canvas, "words")))


def form(rng: random.Random) -> Scene:
    """Two to four lines ``KEY:VALUE``."""
    canvas = _canvas(rng)
    count = rng.randint(2, 4)
    colour = _text_colour(canvas, rng)
    face = rng.choice(("sans", "round", "angular"))
    pitch = 84 / max(count - 1, 2)
    questions = []
    for i, key in enumerate(rng.sample(words.KEYS, count)):
        length = rng.randint(1, 3)
        value = words.number(rng, length)
        style = TextStyle(face, rng.uniform(14, 16), 15.0, weight=rng.uniform(1.8, 2.2))
        string = f"{key}:{value}"
        x = 9 + style.advance * (len(string) - 1) / 2 + rng.uniform(0, 2)
        canvas.text(string, x, 14 + i * pitch, colour, style)
        wrong = _strings(value, lambda length=length: words.number(rng, length))
        questions.append(Question("value", value, wrong, {"key": key}))
    return Scene("form", (canvas.finish(),), (*questions, *_about(canvas, "form")))


def formula(rng: random.Random) -> Scene:
    """A handwritten formula."""
    canvas = _canvas(rng)
    parts = words.formula(rng)
    style = _style(rng, "hand", len(parts))
    small = TextStyle("hand", style.height * 0.72, style.advance, weight=style.weight * 0.85)
    y = rng.uniform(24, SIDE - 20)
    slack = SIDE / 2 - style.advance * (len(parts) - 1) / 2 - 10
    x = SIDE / 2 + rng.uniform(-1, 1) * max(0.0, slack)
    colour = _text_colour(canvas, rng)
    for i, (character, raised) in enumerate(parts):
        along = (i - (len(parts) - 1) / 2) * style.advance
        lift = style.height * 0.45 if raised else 0.0
        canvas.glyph(character, x + along, y - lift, colour, small if raised else style)
    latex = words.latex(parts)
    wrong = _strings(latex, lambda: words.latex(words.formula(rng)))
    question = Question("formula", latex, wrong)
    return Scene("formula", (canvas.finish(),), (question, *_about(canvas, "formula")))


# --- shapes ---------------------------------------------------------------------------------


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
        canvas.shape(thing.shape, x, y, radius, thing.colour, size)


def _cells(rng: random.Random, count: int, columns: int = 3) -> list[tuple[int, int]]:
    return rng.sample([(c, r) for c in range(columns) for r in range(columns)], count)


def _inks(canvas: Canvas, rng: random.Random, count: int) -> list[str]:
    return rng.sample(INKS, count)


def shapes(rng: random.Random) -> Scene:
    """One to six shapes on a loose 3 x 3 grid."""
    canvas = _canvas(rng)
    _clutter(canvas, rng, 3)
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
    questions = [Question("count", str(count), _near(count, rng))]
    questions += _counts(things, rng) + _attributes(things) + _positions(things, rng)
    picture = canvas.finish()
    if rng.random() < 0.3:
        picture, blurred = _blur(picture, rng)
        answer = "blurred" if blurred else "sharp"
        questions.append(Question("quality", answer, _others(("sharp", "blurred"), answer)))
    return Scene("shapes", (picture,), (*questions, *_about(canvas, "shapes")))


def _blur(picture: Picture, rng: random.Random) -> tuple[Picture, bool]:
    if rng.random() < 0.5:
        return picture, False
    blurred = picture.image.filter(ImageFilter.GaussianBlur(rng.uniform(1.6, 2.2)))
    return Picture(blurred, picture.marks), True


def _counts(things: Sequence[_Thing], rng: random.Random) -> list[Question]:
    out = []
    for shape in {t.shape: None for t in things}:
        count = sum(t.shape == shape for t in things)
        out.append(Question("count_shape", str(count), _near(count, rng), {"shape": shape}))
    for colour in {t.colour: None for t in things}:
        count = sum(t.colour == colour for t in things)
        out.append(Question("count_colour", str(count), _near(count, rng), {"colour": colour}))
    return out


def _attributes(things: Sequence[_Thing]) -> list[Question]:
    out = []
    for t in things:
        if sum(o.shape == t.shape for o in things) == 1:
            slots = {"shape": t.shape}
            out.append(Question("colour_of", t.colour, _others(INKS, t.colour), slots))
        if sum(o.colour == t.colour for o in things) == 1:
            slots = {"colour": t.colour}
            out.append(Question("shape_of", t.shape, _others(SHAPES, t.shape), slots))
    sizes = [t for t in things if t.large]
    if len(things) >= 3 and len(sizes) == 1:
        shape = sizes[0].shape
        out.append(Question("largest", shape, _others(SHAPES, shape)))
    if len(things) >= 3 and len(sizes) == len(things) - 1:
        shape = next(t.shape for t in things if not t.large)
        out.append(Question("smallest", shape, _others(SHAPES, shape)))
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
            place = corners[t.column, t.row]
            out.append(Question("where", place, _others(PLACES, place), {"shape": t.shape}))
    for a in single:
        for b in single:
            direction = _direction(a, b)
            if a is b or not direction:
                continue
            slots = {"a": a.shape, "b": b.shape}
            out.append(Question("direction", direction, _others(DIRECTIONS, direction), slots))
            if rng.random() < 0.5:
                same = "yes" if a.colour == b.colour else "no"
                out.append(Question("same_colour", same, _others(("yes", "no"), same), slots))
            if sum(_direction(o, b) == direction for o in things if o is not b) == 1:
                slots = {
                    "b": b.shape,
                    "direction": f"{direction} of" if direction in ("left", "right") else direction,
                }
                out.append(Question("beside", a.shape, _others(SHAPES, a.shape), slots))
    return out


def _direction(a: _Thing, b: _Thing) -> str:
    """Where ``a`` lies seen from ``b`` if they share a row or a column, else nothing."""
    if a.row == b.row and a.column != b.column:
        return "left" if a.column < b.column else "right"
    if a.column == b.column and a.row != b.row:
        return "above" if a.row < b.row else "below"
    return ""


def pair(rng: random.Random) -> Scene:
    """Two or three different shapes in one row or column: positions and equal colours."""
    canvas = _canvas(rng)
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
        _Thing(k, c, *cell, large=large)
        for k, c, cell in zip(kinds, colours, cells, strict=True)
    ]
    _place(canvas, things, 3, rng)
    a, b = rng.sample(things, 2)
    same = "yes" if a.colour == b.colour else "no"
    questions = _attributes(things) + _positions(things, rng)
    slots = {"a": a.shape, "b": b.shape}
    questions.append(Question("same_colour", same, _others(("yes", "no"), same), slots))
    return Scene("pair", (canvas.finish(),), (*questions, *_about(canvas, "shapes")))


def odd(rng: random.Random) -> Scene:
    """Three to six shapes, all alike but for one."""
    canvas = _canvas(rng)
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
    questions = [Question("count", str(count), _near(count, rng)), *_counts(things, rng)]
    if by_colour:
        questions.append(Question("odd_colour", other_colour, _others(INKS, other_colour)))
        questions.append(Question("most_colour", colour, _others(INKS, colour)))
    elif sum(t.shape == other_shape for t in things) == 1:
        questions.append(Question("odd_shape", other_shape, _others(SHAPES, other_shape)))
    return Scene("odd", (canvas.finish(),), (*questions, *_about(canvas, "shapes")))


def row(rng: random.Random) -> Scene:
    """A row of shapes whose colours repeat: what comes next?"""
    canvas = _canvas(rng)
    period = rng.randint(2, 3)
    count = rng.randint(max(4, period + 1), 5)
    colours = rng.sample(INKS, period)
    shape = rng.choice(SHAPES)
    pitch, y = SIDE / 5, rng.uniform(30, SIDE - 30)
    for i in range(count):
        x = (i + 0.5) * pitch + rng.uniform(-1, 1)
        canvas.shape(shape, x, y + rng.uniform(-2, 2), 8.0, colours[i % period], "small")
    answer = colours[count % period]
    questions = [
        Question("next_colour", answer, _others(INKS, answer)),
        Question("count", str(count), _near(count, rng)),
    ]
    return Scene("row", (canvas.finish(),), (*questions, *_about(canvas, "shapes")))


def frame(rng: random.Random) -> Scene:
    """Three or four shapes, one of them inside a frame."""
    canvas = _canvas(rng)
    count = rng.randint(2, 4)
    kinds = rng.sample(SHAPES, count)
    things = [
        _Thing(k, rng.choice(INKS), c, r)
        for k, (c, r) in zip(kinds, _cells(rng, count), strict=True)
    ]
    pitch, inside = SIDE / 3, things[0]
    x, y, half = (inside.column + 0.5) * pitch, (inside.row + 0.5) * pitch, pitch * 0.44
    border = "white" if canvas.is_dark else "black"
    corners = [(x - half, y - half), (x + half, y - half), (x + half, y + half), (x - half, y + half)]
    canvas.line([*corners, corners[0]], canvas.ink(border), 2.0)
    _place(canvas, things, 3, rng)
    mark = canvas.marks[0]
    canvas.marks[0] = Mark(mark.x, mark.y, mark.colour, shape=mark.shape, size="framed")
    questions = [Question("inside", inside.shape, _others(SHAPES, inside.shape))]
    questions += _attributes(things)
    return Scene("frame", (canvas.finish(),), (*questions, *_about(canvas, "shapes")))


def chart(rng: random.Random) -> Scene:
    """A bar chart with the values written above the bars."""
    canvas = _canvas(rng)
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
        canvas.glyph(str(value), x, top - 10, ink, style)
    canvas.line([(3, base), (SIDE - 3, base)], axis, 1.5)
    tallest = colours[values.index(max(values))]
    shortest = colours[values.index(min(values))]
    questions = [
        Question("tallest", tallest, _others(INKS, tallest)),
        Question("shortest", shortest, _others(INKS, shortest)),
        Question("bar_count", str(count), _near(count, rng)),
    ]
    for colour, value in zip(colours, values, strict=True):
        wrong = _others([str(v) for v in range(1, 10)], str(value))
        questions.append(Question("bar_value", str(value), wrong, {"colour": colour}))
    return Scene("chart", (canvas.finish(),), (*questions, *_about(canvas, "chart")))


def _about(canvas: Canvas, kind: str) -> list[Question]:
    """Questions that fit every single picture."""
    tone = "dark" if canvas.is_dark else "light"
    return [
        Question("kind", kind, _others(KINDS, kind)),
        Question("background", tone, _others(("light", "dark"), tone)),
    ]


# --- several pictures -----------------------------------------------------------------------


def album(rng: random.Random) -> Scene:
    """Two or three pictures, each with one shape or one short word."""
    count = rng.randint(2, 3)
    kinds, colours = rng.sample(SHAPES, count), rng.sample(INKS, count)
    pictures, questions = [], []
    ordinals = ORDINALS[:count]
    for i in range(count):
        canvas = _canvas(rng, SMALL_SIDE)
        slots = {"ordinal": ordinals[i]}
        if rng.random() < 0.3:
            make = _number_or_word(rng, 0.0)
            string = make()
            style = _style(rng, rng.choice(("sans", "round")), len(string), SMALL_SIDE)
            canvas.text(string, SMALL_SIDE / 2, rng.uniform(22, 62), _text_colour(canvas, rng), style)
            questions.append(Question("nth_read", string, _strings(string, make), slots))
        else:
            at = [rng.uniform(26, SMALL_SIDE - 26) for _ in range(2)]
            large = rng.random() < 0.5
            radius = 15.0 if large else 9.5
            canvas.shape(kinds[i], *at, radius, colours[i], "large" if large else "small")
            wrong = _others(INKS, colours[i])
            questions.append(Question("nth_colour", colours[i], wrong, slots))
            questions.append(Question("nth_shape", kinds[i], _others(SHAPES, kinds[i]), slots))
            for skill, name, value in (
                ("which_image", "shape", kinds[i]),
                ("which_colour_image", "colour", colours[i]),
            ):
                wrong = _others(ordinals, ordinals[i])
                questions.append(Question(skill, ordinals[i], wrong, {name: value}))
        pictures.append(canvas.finish())
    return Scene("album", tuple(pictures), tuple(questions))


SINGLE: dict[str, Callable[[random.Random], Scene]] = {
    "text": text, "signs": signs, "lines": lines, "form": form, "formula": formula,
    "shapes": shapes, "pair": pair, "odd": odd, "row": row, "frame": frame, "chart": chart,
}  # fmt: skip
SCENES = {**SINGLE, "album": album}


def blank(picture: Image.Image) -> Image.Image:
    """A uniform gray picture of the same size: what is left when nothing can be seen."""
    return Image.new("RGB", picture.size, (128, 128, 128))
